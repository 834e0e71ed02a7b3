"""Encodes images once, to train flows on their latents; a run that was stopped goes on.

python scripts/cache_latents.py --image_path photos --output_dir latents --resolution 256 \
    --vae diffusers:stabilityai/sd-vae-ft-mse --labels folder --flip
python scripts/cache_latents.py ... --captions sidecar --text_encoder t5:google/t5-v1_1-base
torchrun --nproc_per_node 8 scripts/cache_latents.py --from_pretrained exported/my-vae ...

Exit status: 0 done; 1 done but for unreadable images, which are listed; 2 an error.
"""

from pathlib import Path
from typing import Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.dataset.options import TextDataOptions
from wfimagevae.generate.options import AutoencoderOptions, CacheOptions
from wfimagevae.options import Count, Options, option


class ModelOptions(AutoencoderOptions):
    """model"""

    vae: str | None = option(
        None,
        "in place of --from_pretrained: WFVAE2Image:PATH, or diffusers:PATH_OR_NAME (a hub "
        "name may end in a subfolder)",
        "KIND:PATH",
    )


class ImageOptions(Options):
    """images"""

    image_path: str = option(
        ...,
        "folder (searched recursively) or JSON-lines manifest, which may have label and "
        "caption beside the path; see --labels and --captions",
        "PATH",
    )
    resolution: Count = option(
        256, "the short side is resized to this, and the middle square taken", "PX"
    )
    labels: Literal["none", "folder", "manifest"] = option(
        "none", "classes: none, the first-level sub-folders, or the manifest's label"
    )


class TextOptions(Options):
    """text"""

    captions: str = option(
        "none",
        "sidecar (a .txt beside each image, a caption a line), filename (its words), "
        "manifest (its field 'caption', a string or a list), or a file of lines name<TAB>caption; "
        "all of an image's are kept",
        "SOURCE",
    )
    fixed_prompt_prefix: str = TextDataOptions.model_fields["fixed_prompt_prefix"]
    text_encoder: str | None = option(
        None,
        "store the embeddings of all captions, too: clip:, t5: or bert: and a folder or hub "
        "name (bytes need no cache)",
        "SPEC",
    )
    text_length: Count | None = option(
        None, "tokens of a caption (default: 128, or what the encoder takes if that is less)", "N"
    )
    text_encoder_precision: Literal["fp32", "bf16"] = TextDataOptions.model_fields[
        "text_encoder_precision"
    ]


class CacheLatentsOptions(ModelOptions, ImageOptions, TextOptions, CacheOptions):
    """output"""

    output_dir: str = option(..., "where the cache goes", "DIR")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(CacheLatentsOptions, argv, __doc__)
    source = options.from_pretrained or options.ckpt_path
    if bool(options.vae) == bool(source):
        raise ValueError("give either --vae KIND:PATH or --from_pretrained (or --ckpt_path)")
    if options.text_encoder == "bytes":
        raise ValueError("--text_encoder bytes: bytes need no cache; give it to the training")
    for name in ("fixed_prompt_prefix", "text_encoder"):
        if getattr(options, name) and options.captions == "none":
            raise ValueError(f"--{name} is for captions: give --captions")

    from wfimagevae.dataset import Captions, IndexedImages, Labels
    from wfimagevae.engine.distributed import world
    from wfimagevae.generate.autoencoders import autoencoder_spec, load_autoencoder
    from wfimagevae.generate.image_folder import list_unreadable
    from wfimagevae.generate.latent_cache import LatentCache
    from wfimagevae.model.text import open_text_encoder

    captions = Captions(options.captions, options.fixed_prompt_prefix)
    labels = Labels(options.labels)
    images = IndexedImages(options.image_path, options.resolution, labels, captions)
    # A process may have one shard more to encode than another, which takes what it takes.
    with world(options.device, timeout_minutes=24 * 60) as processes:
        autoencoder = load_autoencoder(options.vae or options, processes.device)
        name = options.vae or autoencoder_spec(options)
        folder, text = Path(options.output_dir).expanduser(), None
        if options.text_encoder:
            how = options.text_length, options.text_encoder_precision
            text = open_text_encoder(options.text_encoder, processes.device, *how)
        cache = LatentCache(autoencoder, name, images, folder, options, text)
        record, unreadable = cache.run(processes)
        list_unreadable(unreadable, processes)
        if processes.is_main:
            shape = "x".join(map(str, record["latent_shape"]))
            print(
                f"{record['num_samples']} latents of {shape}, {len(record['samples'])} shards in "
                f"{options.output_dir}; {record['num_unreadable']} images left out; shift and "
                f"scale from the {'VAE' if record['normalization'] == 'vae' else 'statistics'}"
            )
    return 1 if record["num_unreadable"] else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
