"""Puts the encoder of one model and the decoder of another into one Hugging Face folder.

python scripts/merge_encoder_and_decoder.py --encoder_from exported/first \
    --decoder_from results/finetuned-decoder --save_dir exported/merged
"""

from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import AutoencoderOptions
from wfimagevae.options import Options, option

_PLACES = "Hugging Face folder, .ckpt or folder of .ckpt files"


class MergeOptions(Options):
    """options"""

    model_name: str = option("WFVAE2Image", "registered name", "NAME")
    encoder_from: str = option(..., f"model whose encoder to take: {_PLACES}", "PATH")
    decoder_from: str = option(..., f"model whose decoder to take: {_PLACES}", "PATH")
    config_file: str | None = option(
        None,
        "configuration, for a .ckpt with none in it or beside it; the other model keeps its own",
        "JSON",
        flag="model_config",
    )
    save_dir: str = option(..., "Hugging Face folder to write", "DIR")
    use_raw_weights: bool = AutoencoderOptions.model_fields["use_raw_weights"]


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(MergeOptions, argv, __doc__)

    from wfimagevae.export.folder import check_target, export_vae, merge
    from wfimagevae.export.options import CardOptions
    from wfimagevae.generate.autoencoders import load_vae, spread_config

    folder, sources = Path(options.save_dir), (options.encoder_from, options.decoder_from)
    check_target(folder, *sources)
    how = {"model_name": options.model_name, "use_raw_weights": options.use_raw_weights}
    models = [AutoencoderOptions(from_pretrained=source, **how) for source in sources]
    merged = merge(*map(load_vae, spread_config(options.config_file, models)))
    export_vae(merged, folder, CardOptions())
    print(f"{folder}: merged, and identical when read back")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
