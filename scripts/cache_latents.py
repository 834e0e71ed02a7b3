"""Encodes a folder of images once, for training a flow on the latents.

python scripts/cache_latents.py --image_path photos --output_dir latents --resolution 256 \
    --vae diffusers:stabilityai/sd-vae-ft-mse --labels folder --flip
python scripts/cache_latents.py ... --captions sidecar --text_encoder t5:google/t5-v1_1-base
torchrun --nproc_per_node 8 scripts/cache_latents.py --from_pretrained exported/my-vae ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, non_negative_int, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import add_compute_args, add_model_args, model_source


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Encode images into shards of latents and a record, latents.json. Runs under "
        "torchrun, too. A run that was stopped goes on where it was when started again.",
        epilog="Exit status: 0 done; 1 done but for unreadable images, which are listed; "
        "2 an error.",
    )
    add_model_args(parser)
    parser.add_argument(
        "--vae",
        metavar="KIND:PATH",
        help="in place of --from_pretrained: WFVAE2Image:PATH, or diffusers:PATH_OR_NAME (a hub "
        "name may end in a subfolder)",
    )
    _add_image_args(parser)
    _add_text_args(parser)
    _add_output_args(parser)
    add_compute_args(parser)
    return parser


def _add_image_args(parser: Parser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--image_path",
        required=True,
        metavar="PATH",
        help="folder (searched recursively) or JSON-lines manifest, which may have label and "
        "caption beside the path; see --labels and --captions",
    )
    group.add_argument(
        "--resolution",
        type=positive_int,
        default=256,
        metavar="PX",
        help="the short side is resized to this, and the middle square taken",
    )
    group.add_argument(
        "--labels",
        choices=("none", "folder", "manifest"),
        default="none",
        help="classes: none, the first-level sub-folders, or the manifest's label",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=32, metavar="N", help="images encoded at once"
    )
    group.add_argument(
        "--num_workers", type=non_negative_int, default=4, metavar="N", help="reading processes"
    )


def _add_text_args(parser: Parser) -> None:
    group = parser.add_argument_group("text")
    group.add_argument(
        "--captions",
        default="none",
        metavar="SOURCE",
        help="sidecar (a .txt beside each image, a caption a line), manifest (its field 'caption', "
        "a string or a list), or a file of lines name<TAB>caption; all of an image's are kept",
    )
    group.add_argument(
        "--fixed_prompt_prefix",
        default="",
        metavar="TEXT",
        help="set before every caption, with '. ' between them",
    )
    group.add_argument(
        "--text_encoder",
        metavar="SPEC",
        help="store the embeddings of all captions, too: clip:, t5: or bert: and a folder or hub "
        "name (bytes need no cache)",
    )
    group.add_argument(
        "--text_length",
        type=positive_int,
        metavar="N",
        help="tokens of a caption (default: 128, or what the encoder takes if that is less)",
    )


def _add_output_args(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", required=True, metavar="DIR", help="where the cache goes")
    group.add_argument(
        "--posterior",
        choices=("sample", "mode"),
        default="sample",
        help="sample: store mean and log-variance, so that training draws anew each epoch; mode: "
        "the mean alone, half the size",
    )
    group.add_argument("--flip", action="store_true", help="store the mirrored images' latents too")
    group.add_argument(
        "--latent_dtype",
        choices=("fp16", "bf16", "fp32"),
        default="fp16",
        help="stored type; fp16 rounds by 0.05 %% at most, less than a reconstruction shows, and "
        "takes half of fp32's space",
    )
    group.add_argument(
        "--normalization",
        choices=("auto", "vae", "statistics"),
        default="auto",
        help="shift and scale of training: from the VAE's own config, from the mean and standard "
        "deviation of these latents, or (auto) the former where there is one",
    )
    group.add_argument(
        "--shard_size",
        type=positive_int,
        default=4096,
        metavar="N",
        help="images a shard; processes share out whole shards",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)
    source = args.from_pretrained or args.ckpt_path
    if bool(args.vae) == bool(source):
        raise ValueError("give either --vae KIND:PATH or --from_pretrained (or --ckpt_path)")
    if args.text_encoder == "bytes":
        raise ValueError("--text_encoder bytes: bytes need no cache; give it to the training")
    for name in ("fixed_prompt_prefix", "text_encoder"):
        if getattr(args, name) and args.captions == "none":
            raise ValueError(f"--{name} is for captions: give --captions")

    from wfimagevae.dataset import Captions, IndexedImages, Labels
    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import world
    from wfimagevae.generate.autoencoders import as_autoencoder, load_autoencoder, load_vae
    from wfimagevae.generate.latent_cache import CacheOptions, LatentCache
    from wfimagevae.model.text import open_text_encoder

    captions = Captions(args.captions, args.fixed_prompt_prefix)
    images = IndexedImages(args.image_path, args.resolution, Labels(args.labels), captions)
    options = CacheOptions(
        posterior=args.posterior,
        flip=args.flip,
        dtype=args.latent_dtype,
        shard_size=args.shard_size,
        normalization=args.normalization,
        precision=args.mixed_precision,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    # A process may have one shard more to encode than another, which takes what it takes.
    with world(args.device, timeout_minutes=24 * 60) as here:
        enable_fast_kernels(here.device)
        if args.vae:
            autoencoder = load_autoencoder(args.vae)
            autoencoder.network.to(here.device)
        else:
            autoencoder = as_autoencoder(load_vae(**model_source(args)), here.device)
        name, folder = args.vae or f"{args.model_name}:{source}", Path(args.output_dir).expanduser()
        text = None
        if args.text_encoder:
            text = open_text_encoder(args.text_encoder, here.device, args.text_length)
        cache = LatentCache(autoencoder, name, images, folder, options, text)
        record, unreadable = cache.run(here)
        if here.is_main:
            for path, reason in sorted(unreadable):
                print(f"unreadable: {path}: {reason}", file=sys.stderr)
            shape = "x".join(map(str, record["latent_shape"]))
            print(
                f"{record['num_samples']} latents of {shape}, {len(record['samples'])} shards in "
                f"{args.output_dir}; {record['num_unreadable']} images left out; shift and scale "
                f"from the {'VAE' if record['normalization'] == 'vae' else 'statistics'}"
            )
    return 1 if record["num_unreadable"] else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
