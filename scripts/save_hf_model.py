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

    from wfimagevae.export.folder import check_target
    from wfimagevae.files import read_json
    from wfimagevae.generate.generator_files import find_generator_facts

    folder, source = Path(options.save_dir), options.from_pretrained or options.ckpt_path or ""
    check_target(folder, source)
    run = Path(source) if Path(source).is_dir() else Path(source).parent
    path = run / "options.json"  # of the training, beside its checkpoints
    training = read_json(path) if path.is_file() else None
    is_flow = bool(source) and find_generator_facts(source) is not None
    export = _export_flow if is_flow else _export_vae
    export(options, source, folder, training)
    print(f"{folder}: exported, and identical when read back")


def _export_vae(options: ExportOptions, source: str, folder: Path, training: dict | None) -> None:
    from wfimagevae.export.folder import export_vae, vae_card
    from wfimagevae.files import read_json
    from wfimagevae.generate.autoencoders import load_vae

    for name in ("vae", "text_encoder"):
        if value := getattr(options, name):
            raise ValueError(f"--{name} {value} belongs to a flow, and {source} is none")
    evaluation, path = None, options.metrics_json
    if path:
        evaluation = read_json(path)
        if not isinstance(evaluation.get("protocol"), dict):
            raise ValueError(f"--metrics_json {path} was not written by eval_image.py: no protocol")
    vae = load_vae(options)
    title = options.name or folder.resolve().name
    export_vae(vae, folder, vae_card(vae, title, training, evaluation))


def _export_flow(options: ExportOptions, source: str, folder: Path, training: dict | None) -> None:
    import torch

    from wfimagevae.export.folder import export_flow, flow_card
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.options import GeneratorOptions

    if options.metrics_json:
        raise ValueError("--metrics_json quotes reconstructions; a flow has none")
    parts = GeneratorOptions(
        from_pretrained=source,
        vae=options.vae,
        text_encoder=options.text_encoder,
        use_raw_weights=options.use_raw_weights,
    )
    generator = load_generator(parts, torch.device("cpu"))
    title = options.name or folder.resolve().name
    export_flow(generator, folder, flow_card(generator, title, training))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
