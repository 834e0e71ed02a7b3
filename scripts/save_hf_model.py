"""Exports a checkpoint as a Hugging Face folder: config.json, safetensors, model card.

python scripts/save_hf_model.py --from_pretrained results/my-run --save_dir exported/my-vae \
    --metrics_json metrics.json
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import AutoencoderOptions
from wfimagevae.options import option


class ExportOptions(AutoencoderOptions):
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
    name: str | None = option(None, "title of the model card; not given: the folder's name")
    metrics_json: str | None = option(
        None, "what eval_image.py wrote, to be quoted in the model card", "FILE"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = parse(
        ExportOptions,
        argv,
        description="Export an autoencoder or a flow as a Hugging Face folder, and check that it "
        "reads back as the same model.",
    )

    import torch

    from wfimagevae.export.folder import check_target, export_flow, export_vae, flow_card, vae_card
    from wfimagevae.files import read_json
    from wfimagevae.generate.autoencoders import load_vae
    from wfimagevae.generate.generator_files import find_generator_facts, load_generator
    from wfimagevae.generate.options import GeneratorOptions

    folder, source = Path(options.save_dir), options.from_pretrained or options.ckpt_path or ""
    check_target(folder, source)
    run = Path(source) if Path(source).is_dir() else Path(source).parent
    path = run / "options.json"  # of the training, beside its checkpoints
    training = read_json(path) if path.is_file() else None
    title, path = options.name or folder.resolve().name, options.metrics_json
    parts = {"vae": options.vae, "text_encoder": options.text_encoder}
    if source and find_generator_facts(source) is not None:
        if path:
            raise ValueError("--metrics_json quotes reconstructions; a flow has none")
        raw = options.use_raw_weights
        flow = GeneratorOptions(from_pretrained=source, use_raw_weights=raw, **parts)
        generator = load_generator(flow, torch.device("cpu"))
        export_flow(generator, folder, flow_card(generator, title, training))
    else:
        for name, value in parts.items():
            if value:
                raise ValueError(f"--{name} {value} belongs to a flow, and {source} is none")
        evaluation = read_json(path) if path else None
        if evaluation is not None and not isinstance(evaluation.get("protocol"), dict):
            raise ValueError(f"--metrics_json {path} was not written by eval_image.py: no protocol")
        vae = load_vae(options)
        export_vae(vae, folder, vae_card(vae, title, training, evaluation))
    print(f"{folder}: exported, and identical when read back")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
