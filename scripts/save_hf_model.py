"""Exports a checkpoint as a Hugging Face folder: config.json, safetensors, model card.

python scripts/save_hf_model.py --from_pretrained results/my-run --save_dir exported/my-vae \
    --metrics_json metrics.json
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import add_model_args, model_source


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Export an autoencoder or a flow as a Hugging Face folder, and check that it "
        "reads back as the same model."
    )
    add_model_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save_dir", required=True, metavar="DIR", help="Hugging Face folder to write"
    )
    group.add_argument(
        "--vae",
        metavar="KIND:PATH",
        help="autoencoder of a latent flow, if it is no longer where the training recorded it",
    )
    group.add_argument(
        "--text_encoder",
        metavar="KIND:PATH",
        help="text encoder of a text flow, if it is no longer where it was in training",
    )
    group.add_argument("--name", help="title of the model card; not given: the folder's name")
    group.add_argument(
        "--metrics_json",
        metavar="FILE",
        help="what eval_image.py wrote, to be quoted in the model card",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)

    from wfimagevae.export.autoencoder import check_target
    from wfimagevae.generate.generator_files import find_generator_facts

    folder = Path(args.save_dir)
    source = args.from_pretrained or args.ckpt_path or ""
    check_target(folder, source)
    is_flow = bool(source) and find_generator_facts(source) is not None
    (export_flow if is_flow else export_vae)(args, source, folder)
    print(f"{folder}: exported, and identical when read back")


def export_vae(args: Namespace, source: str, folder: Path) -> None:
    """Exports an autoencoder."""
    from wfimagevae.export.autoencoder import model_card, save_model
    from wfimagevae.generate.autoencoders import load_vae

    for flag, value in (("vae", args.vae), ("text_encoder", args.text_encoder)):
        if value:
            raise ValueError(f"--{flag} {value} belongs to a flow, and {source} is none")
    evaluation = read_evaluation(args.metrics_json) if args.metrics_json else None
    vae = load_vae(**model_source(args))
    card = model_card(vae, args.name or folder.resolve().name, training_options(source), evaluation)
    save_model(vae, folder, card)


def export_flow(args: Namespace, source: str, folder: Path) -> None:
    """Exports a flow, with its autoencoder if it has one."""
    import torch

    from wfimagevae.export.flow import flow_card, save_flow
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.options import GeneratorOptions

    if args.metrics_json:
        raise ValueError("--metrics_json quotes reconstructions; a flow has none")
    where = GeneratorOptions(
        from_pretrained=source,
        vae=args.vae,
        use_raw_weights=args.use_raw_weights,
        text_encoder=args.text_encoder,
    )
    generator = load_generator(where, torch.device("cpu"))
    name = args.name or folder.resolve().name
    save_flow(generator, folder, flow_card(generator, name, training_options(source)))


def read_evaluation(path: str) -> dict:
    """What eval_image.py wrote; ValueError if it is something else."""
    from wfimagevae.files import read_json

    evaluation = read_json(path)
    if not isinstance(evaluation.get("protocol"), dict):
        raise ValueError(f"--metrics_json {path} was not written by eval_image.py: no protocol")
    return evaluation


def training_options(source: str) -> dict | None:
    """The options that a training run left beside its checkpoints, if any."""
    from wfimagevae.files import read_json

    path = Path(source)
    options = (path if path.is_dir() else path.parent) / "options.json"
    return read_json(options) if options.is_file() else None


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
