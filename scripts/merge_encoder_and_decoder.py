"""Puts the encoder of one model and the decoder of another into one Hugging Face folder.

python scripts/merge_encoder_and_decoder.py --encoder_from exported/first \
    --decoder_from results/finetuned-decoder --save_dir exported/merged
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser
from wfimagevae.engine.cli import run_cli


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Merge the encoder of one model with the decoder of another, for example one "
        "that was trained further with --freeze_encoder."
    )
    parser.add_argument(
        "--model_name", default="WFVAE2Image", metavar="NAME", help="registered name"
    )
    for half in ("encoder", "decoder"):
        parser.add_argument(
            f"--{half}_from",
            required=True,
            metavar="PATH",
            help=f"model whose {half} to take: Hugging Face folder, .ckpt or folder of .ckpt files",
        )
    parser.add_argument(
        "--model_config",
        metavar="JSON",
        help="configuration, for a .ckpt with none in it or beside it; the other model keeps its "
        "own",
    )
    parser.add_argument(
        "--save_dir", required=True, metavar="DIR", help="Hugging Face folder to write"
    )
    parser.add_argument(
        "--use_raw_weights",
        action="store_true",
        help="take a .ckpt's raw weights, not their moving average (EMA)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)

    from wfimagevae.export.autoencoder import check_target, model_card, save_model
    from wfimagevae.export.merging import merge
    from wfimagevae.generate.autoencoders import load_vae
    from wfimagevae.model.weight_files import has_config

    folder, sources = Path(args.save_dir), (args.encoder_from, args.decoder_from)
    check_target(folder, *sources)
    bare = [path for path in sources if args.model_config and not has_config(path)]
    if args.model_config and not bare:
        raise ValueError(
            f"--model_config {args.model_config}: both models have their own; leave it out"
        )
    halves = [
        load_vae(
            args.model_name,
            path,
            args.model_config if path in bare else None,
            use_raw_weights=args.use_raw_weights,
        )
        for path in sources
    ]
    merged = merge(*halves)
    save_model(merged, folder, model_card(merged, folder.resolve().name))
    print(f"{folder}: merged, and identical when read back")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
