"""Exports a model as a Hugging Face folder with its code, and checks that it reads back the same.

python scripts/save_hf_model.py --from_pretrained results/my-run --save_dir exported/my-vae \
    --metrics_json metrics.json --training_data "40,000 photographs of my own"
python scripts/save_hf_model.py --from_pretrained results/my-flow --save_dir exported/my-flow \
    --license cc-by-4.0 --push_to_hub me/my-flow
"""

from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.export.options import CardOptions
from wfimagevae.generate.options import AutoencoderOptions, GeneratorOptions
from wfimagevae.options import option


class ExportOptions(AutoencoderOptions, CardOptions):
    """output"""

    save_dir: str = option(..., "Hugging Face folder to write", "DIR")
    vae: str | None = option(
        None,
        "autoencoder of a latent flow, if it is no longer where the training recorded it",
        "KIND:PATH",
    )
    text_encoder: str | None = option(
        None,
        "text encoder of a text flow, if it is no longer where it was in training",
        "KIND:PATH",
    )


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(ExportOptions, argv, __doc__)

    import torch

    from wfimagevae.export import folder as hf_folder
    from wfimagevae.export.card import check_card
    from wfimagevae.files import is_folder, read_json
    from wfimagevae.generate.autoencoders import load_vae
    from wfimagevae.generate.generator_files import find_generator_facts, load_generator
    from wfimagevae.model.weight_files import find_weights

    folder, source = Path(options.save_dir), options.from_pretrained or options.ckpt_path or ""
    is_flow = bool(source) and find_generator_facts(source) is not None
    hf_folder.check_target(folder, source, is_flow=is_flow)
    check_card(options)
    hf_folder.check_hub(options.push_to_hub)
    run = find_weights(source) if source else folder
    run = run if is_folder(run) else run.parent
    path = run / "options.json"  # of the training, beside its checkpoints
    training = read_json(path) if path.is_file() else None
    card = options.part(CardOptions)
    parts = {"vae": options.vae, "text_encoder": options.text_encoder}
    if is_flow:
        raw = options.use_raw_weights
        flow = GeneratorOptions(from_pretrained=source, use_raw_weights=raw, **parts)
        drawn = sorted(run.glob("val_samples/step-*.png"))
        if drawn and not options.picture:
            card = card.changed(picture=str(drawn[-1]))
        hf_folder.export_flow(load_generator(flow, torch.device("cpu")), folder, card, training)
    else:
        for name, value in parts.items():
            if value:
                raise ValueError(f"--{name} {value} belongs to a flow, and {source} is none")
        hf_folder.export_vae(load_vae(options), folder, card, training)
    print(f"{folder}: exported, and identical when read back")
    if options.push_to_hub:
        print(f"uploaded to {hf_folder.push_to_hub(folder, options.push_to_hub)}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
