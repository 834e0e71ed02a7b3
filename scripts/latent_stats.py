"""Measures shift (mean) and scale (1 / std) of a model's latents, for (z - shift) * scale.

python scripts/latent_stats.py --from_pretrained exported/my-vae --real_image_dir photos \
    --resolution 256 --write

Exit status: 0 done; 1 done but for unreadable images, which are listed; 2 an error.
"""

from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import AutoencoderOptions, ComputeOptions, ImageFolderOptions
from wfimagevae.options import OutputFile, option


class LatentStatsOptions(AutoencoderOptions, ImageFolderOptions, ComputeOptions):
    """output"""

    write: bool = option(
        False, "update config.json of the Hugging Face folder that --from_pretrained names"
    )
    output_json: OutputFile | None = option(None, "write the statistics to this file", "FILE")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(LatentStatsOptions, argv, __doc__)
    source = options.from_pretrained
    config = Path(source or "") / "config.json"
    # A .ckpt in the folder would be loaded instead, with the configuration that it embeds.
    is_folder = source and config.is_file() and not any(config.parent.glob("*.ckpt"))
    if options.write and not is_folder:
        raise ValueError(
            "--write needs --from_pretrained with a Hugging Face folder (config.json, and no .ckpt "
            f"files), got {source}; make one with scripts/save_hf_model.py"
        )

    from wfimagevae.engine.distributed import world
    from wfimagevae.eval.report import markdown_table
    from wfimagevae.files import write_json
    from wfimagevae.generate.autoencoders import load_vae
    from wfimagevae.generate.image_folder import list_unreadable, open_folder, read_batches
    from wfimagevae.generate.latent_cache import measure_latents, normalization, write_normalization

    dataset, vae, unreadable = open_folder(options), load_vae(options), []
    with world(options.device) as processes:
        batches = read_batches(dataset, options, processes, "encode", unreadable)
        images = (batch["image"] for batch in batches)
        mean, std = measure_latents(vae, images, processes, options.mixed_precision)
        num_unreadable = len(list_unreadable(unreadable, processes))
        if processes.is_main:
            pairs = zip(mean, std, strict=True)
            rows = [[str(i), f"{m:.5f}", f"{s:.5f}"] for i, (m, s) in enumerate(pairs)]
            print(markdown_table(["channel", "mean", "std"], rows))
            if options.output_json:
                count = len(dataset) - num_unreadable
                content = {"mean": mean, "std": std, "count": count} | normalization(mean, std)
                write_json(options.output_json, content)
            if options.write:
                write_normalization(config, mean, std)
                print(f"shift and scale written to {config}")
    return 1 if num_unreadable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
