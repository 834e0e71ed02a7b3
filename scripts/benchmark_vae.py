"""Compares autoencoders on one folder of images.

python scripts/benchmark_vae.py --real_image_dir photos --resolution 256 --output table.md \
    --model WFVAE2Image:results/my-vae --model diffusers:stabilityai/sdxl-vae \
    --model diffusers:black-forest-labs/FLUX.1-dev/vae
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, positive_float
from wfimagevae.engine.cli import run_cli
from wfimagevae.eval.args import (
    METRIC_UNAVAILABLE,
    METRICS,
    add_compute_args,
    add_image_args,
    add_metric_args,
)


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Compare autoencoders on one folder by one protocol: quality, speed, size, "
        "memory. Figures equal those of recon_image.py and eval_image.py.",
        epilog=f"Exit status: 0 all measured; {METRIC_UNAVAILABLE} all but metrics whose weights "
        "are missing (n/a in the table); 2 an error.",
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="KIND:PATH",
        help="WFVAE2Image:PATH, or diffusers:PATH_OR_NAME (a hub name may end in a subfolder); "
        "repeat it for each model",
    )
    add_image_args(parser)
    parser.set_defaults(resolution=256)
    add_metric_args(parser, default=METRICS)
    parser.add_argument(
        "--timing_seconds",
        type=positive_float,
        default=3.0,
        metavar="S",
        help="how long encoding and decoding are timed, each, in seconds",
    )
    parser.add_argument("--output", metavar="FILE", help="Markdown file to write as well")
    add_compute_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)

    from wfimagevae.dataset import ValidImageDataset, valid_loader
    from wfimagevae.engine.device import enable_fast_kernels, resolve_device
    from wfimagevae.eval.benchmark import comparison_table, load_autoencoder, measure
    from wfimagevae.eval.evaluator import Evaluator, Networks
    from wfimagevae.eval.protocol import describe_protocol, protocol_hash

    networks = Networks(args.lpips_net, args.lpips_weights, args.inception_weights)
    networks.check_files()
    device = resolve_device(args.device)
    dataset = ValidImageDataset(
        args.real_image_dir, args.resolution, args.crop_size, args.subset_size
    )
    evaluator = Evaluator(args.metric, device, networks)
    measurements = []
    for spec in args.model:
        loader = valid_loader(dataset, args.batch_size, args.num_workers)
        autoencoder = load_autoencoder(spec, device)
        enable_fast_kernels(device)
        measurements.append(
            measure(
                spec, autoencoder, loader, evaluator, args.mixed_precision, args.timing_seconds
            )
        )
        del autoencoder  # before the next one takes its memory
    measured = [name for name in evaluator.names if name not in evaluator.unavailable]
    protocol = describe_protocol(
        measured, networks, args.resolution, args.crop_size, evaluator.count
    )
    lines = [
        comparison_table(measurements, evaluator.names),
        "",
        f"{evaluator.count} images of {protocol['size']}, {args.mixed_precision}, batches of "
        f"{args.batch_size} on {device_name(device)}, protocol {protocol_hash(protocol)}. GMAC is "
        "for one image there and back.",
    ]
    if device.type != "cuda":
        lines.append("Peak memory is measured on CUDA only.")
    lines += [f"{name}: {note}" for name, note in evaluator.notes.items()]
    lines += [f"{name} is unavailable: {how}" for name, how in evaluator.unavailable.items()]
    text = "\n".join(lines)
    print(text)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return METRIC_UNAVAILABLE if evaluator.unavailable else 0


def device_name(device) -> str:
    """The GPU's name, or the kind of device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
