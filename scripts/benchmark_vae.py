"""Compares autoencoders on one folder of images.

python scripts/benchmark_vae.py --real_image_dir photos --resolution 256 --output table.md \
    --model WFVAE2Image:results/my-vae --model diffusers:stabilityai/sdxl-vae \
    --model diffusers:black-forest-labs/FLUX.1-dev/vae
"""

from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, output_file, positive_float
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import (
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
        "peak memory (on CUDA only). Figures equal those of recon_image.py and eval_image.py.",
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
    parser.add_argument(
        "--model_config",
        metavar="JSON",
        help="configuration, for .ckpt files with none in them or beside them; the other models "
        "keep their own",
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
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="Markdown file to write as well"
    )
    add_compute_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)

    import torch

    from wfimagevae.dataset import ValidImageDataset, valid_loader
    from wfimagevae.engine.device import enable_fast_kernels, resolve_device
    from wfimagevae.eval.benchmark import measure, report
    from wfimagevae.eval.evaluator import Evaluator, Networks
    from wfimagevae.eval.protocol import describe_protocol
    from wfimagevae.generate.autoencoders import load_autoencoders

    for spec in args.model:
        if args.model.count(spec) > 1:
            raise ValueError(f"--model {spec} is given twice; each is measured once")
    networks = Networks(args.lpips_net, args.lpips_weights, args.inception_weights)
    networks.check_files()
    device = resolve_device(args.device)
    dataset = ValidImageDataset(
        args.real_image_dir, args.resolution, args.crop_size, args.subset_size
    )
    loader = valid_loader(dataset, args.batch_size, args.num_workers)
    # All are loaded first, so that a wrong path costs no results; the device holds one at a time.
    autoencoders = load_autoencoders(args.model, args.model_config)
    evaluator = Evaluator(args.metric, device, networks)
    kernels = enable_fast_kernels(device)
    precision, seconds = args.mixed_precision, args.timing_seconds
    measurements = []
    for spec, autoencoder in autoencoders.items():
        autoencoder.network.to(device)
        measurements.append(measure(spec, autoencoder, loader, evaluator, precision, seconds))
        autoencoder.network.cpu()
    measured = list(measurements[0].values)
    protocol = describe_protocol(
        measured, networks, args.resolution, args.crop_size, evaluator.count
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    how = [precision, f"batches of {args.batch_size}", where, kernels]
    text = report(measurements, evaluator, protocol, ", ".join(filter(None, how)))
    print(text)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    return METRIC_UNAVAILABLE if evaluator.unavailable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
