"""Times training steps and prints JSON: img/s, milliseconds of each phase, peak memory.

python scripts/benchmark_train.py --resolution 256 --batch_size 2 --perceptual_weight 0
python scripts/benchmark_train.py --compare_with_bare_loop --resolution 64 --perceptual_weight 0
python scripts/benchmark_train.py --task flow --dataset latents --model_name DiT-XL/2
python scripts/benchmark_train.py --task flow --dataset shapes --compare_objectives
"""

import json

from wfimagevae.command_line import find_flag, parse, run_cli
from wfimagevae.task import TASKS
from wfimagevae.task.bench_options import FlowBenchOptions, VaeBenchOptions


def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    task = find_flag("task", argv)
    kinds = {"vae": VaeBenchOptions, "flow": FlowBenchOptions}
    if task in TASKS.keys() - kinds.keys():
        raise ValueError(f"--task {task} is not timed here; give one of {', '.join(kinds)}")
    options = parse(kinds.get(str(task), VaeBenchOptions), argv, __doc__)
    if options.list_flags:
        raise ValueError("--list_flags belongs to train_ddp.py; here --help lists the flags")

    from wfimagevae.task import bench, bench_attention

    is_vae = isinstance(options, VaeBenchOptions)
    benchmark = bench.vae_benchmark(options) if is_vae else bench.flow_benchmark(options)
    result = benchmark.time_steps(options.warmup, options.steps)
    if options.compare_with_bare_loop:
        result["loop_overhead"] = benchmark.loop_overhead(options.steps)
    if is_vae and options.compare_schedules:
        result |= bench.compare_schedules(options)
    if is_vae and options.compare_attention:
        lengths = options.compare_attention
        result["attention"] = bench_attention.compare_attention(benchmark, lengths)
    if not is_vae and options.compare_objectives:
        result |= bench.compare_objectives(options)
    if options.checkpoint:
        result |= benchmark.checkpoint()
    if options.profile:
        result |= benchmark.profile(options.profile)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
