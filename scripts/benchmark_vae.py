"""Compares autoencoders on one folder by one protocol: quality, speed, size, memory on CUDA.

python scripts/benchmark_vae.py --real_image_dir photos --resolution 256 --output table.md \
    --model WFVAE2Image:results/my-vae --model diffusers:stabilityai/sdxl-vae \
    --model diffusers:black-forest-labs/FLUX.1-dev/vae

Exit status: 0 all measured; 3 all but metrics whose weights are missing (n/a in the table); 2 an
error.
"""

from wfimagevae.command_line import parse, run_cli
from wfimagevae.eval.options import METRIC_UNAVAILABLE, BenchmarkOptions


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(BenchmarkOptions, argv, __doc__)

    import torch

    from wfimagevae.engine.device import use_device
    from wfimagevae.eval.evaluator import Evaluator
    from wfimagevae.eval.report import benchmark, benchmark_table, describe_protocol, remarks
    from wfimagevae.files import write_text
    from wfimagevae.generate.autoencoders import load_autoencoder, read_spec, spread_config
    from wfimagevae.generate.image_folder import open_folder

    for spec in options.model:
        if options.model.count(spec) > 1:
            raise ValueError(f"--model {spec} is given twice; each is measured once")
    device = use_device(options.device)
    dataset = open_folder(options)
    # All are loaded first, so that a wrong path costs no results; the device holds one at a time.
    models = spread_config(options.config_file, list(map(read_spec, options.model)))
    autoencoders = dict(zip(options.model, map(load_autoencoder, models), strict=True))
    evaluator = Evaluator(options.metric, device, options)
    rows, notes = [], []
    for spec, autoencoder in autoencoders.items():
        autoencoder.network.to(device)
        row, lines = benchmark(spec, autoencoder, dataset, evaluator, options)
        autoencoder.network.cpu()
        rows.append(row)
        notes += lines
    notes += remarks({}, evaluator.unavailable)
    metrics = [name for name in evaluator.names if name not in evaluator.unavailable]
    protocol = describe_protocol(metrics, options, evaluator.count)
    where = device.type
    if where == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, TF32 and cudnn.benchmark are on"
    conditions = f"{options.mixed_precision}, batches of {options.batch_size}, {where}"
    text = "\n".join(benchmark_table(rows, notes, protocol, conditions))
    print(text)
    if options.output:
        write_text(options.output, text + "\n")
    return METRIC_UNAVAILABLE if evaluator.unavailable else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
