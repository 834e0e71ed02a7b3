"""Measures what decides the speed of training on this machine: one command, ten minutes.

python scripts/benchmark_gpu.py --yardstick plain_wfvae.py --cifar10 DIR
python scripts/benchmark_gpu.py --device cpu --tiny    # a rehearsal

Each part is a process with a time limit of its own. results.jsonl and table.md grow as parts end,
log.txt as they print, so that a kill leaves what was measured.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from shlex import join, quote, split
from tempfile import TemporaryDirectory
from typing import TextIO

from wfimagevae.command_line import parse, run_cli
from wfimagevae.engine.options import DeviceOptions
from wfimagevae.files import write_text
from wfimagevae.options import Count, ListOf, Positive, new_defaults, option

ROOT = Path(__file__).resolve().parents[1]
GRACE = 20  # seconds in which a training may save after SIGTERM
FULL = {"config": "1024", "near": 256, "far": 1024, "dit": "DiT-XL/2", "tokens": "1024 4096 16384"}
FULL |= {"steps": "--warmup 5 --steps 20", "few": 5, "net": "UNet --batch_size 128 --lr 2e-4"}
FULL |= {"often": "--max_steps 1000000 --eval_steps 500 --save_ckpt_step 500 --log_steps 50"}
TINY = {"config": "small", "near": 48, "far": 64, "dit": "DiT-S/8", "tokens": "16 64"}
TINY |= {"steps": "--warmup 1 --steps 1", "few": 1, "net": "SmallCNN --batch_size 4"}
TINY |= {"often": "--max_steps 2 --eval_steps 2 --eval_num_samples 8 --log_steps 1"}
COLUMNS = ("img_per_s", "ms", "tflop_per_s", "mfu", "device")
MORE = ("alternate_over_joint", "mean_flow_over_flow_matching", "saved_memory_ratio", "busy")
MORE += ("loop_overhead", "checkpoint_bytes", "s_pause", "s_write", "s_resume", "peak_mib", "said")

# Convolutions to and from the 12 channels of the Haar bands, or as many as tensor cores like.
CONVS = """'import torch; x = torch.rand({1}, {2}, 128, 128, device="{0}", dtype=torch.bfloat16);
    last = {{"memory_format": torch.channels_last}}; x = x.to(**last);
    net = torch.nn.Conv2d({2}, 64, 3, padding=1), torch.nn.Conv2d(64, {2}, 3, padding=1);
    net = torch.nn.Sequential(*net).to(x, **last)'
    'net(x).sum().backward(); net[0].bias.grad[0].item()'"""


@new_defaults(device="cuda")
class GpuBenchOptions(DeviceOptions):
    """benchmark: what is measured"""

    output_dir: str = option("gpu_benchmark", "folder of results; earlier ones are replaced", "DIR")
    minutes: Positive = option(10, "time for all parts together", "M")
    batch_size: Count = option(
        32, "images of 256 px a step; 1024 px: a sixteenth of it; DiT-XL/2: twice as many", "N"
    )
    yardstick: str | None = option(
        None, "a script that trains another autoencoder and prints img_per_s as JSON", "FILE"
    )
    cifar10: str | None = option(
        None, "folder of cifar-10-batches-py to train on; without it, on shapes drawn here", "DIR"
    )
    only: ListOf[str] | None = option(None, "only these parts, by their names in the table", "PART")
    tiny: bool = option(False, "tiny networks, few steps, nothing compiled: tries the command")


def plan(options: GpuBenchOptions, runs: str) -> list[tuple[str, float, str, list[str]]]:
    """Name, seconds of ten minutes, part to compare with, and command; the most telling first."""
    given, size = (TINY, 2) if options.tiny else (FULL, options.batch_size)
    paths = runs, options.yardstick, options.cifar10
    runs, yardstick, cifar10 = (quote(os.path.abspath(path or "")) for path in paths)
    python = "env TORCH_COMPILE_DISABLE=1 " * options.tiny + quote(sys.executable)
    ours, device = f"{python} -m wfimagevae", f"--device {options.device}"
    near = f"--resolution {given['near']} --batch_size {size}"
    far = f"--resolution {given['far']} --batch_size {max(1, size // 16)}"
    config = f"examples/wfvae2-image-{given['config']}.json {given['steps']} {device}"
    vae = f"{ours} benchmark_train --model_config {config} --mix_precision bf16 --no_compile "
    plain = f"{vae} --wavelet_loss --perceptual_weight 0 --disc_weight 0"
    vae += "--wavelet_loss --random_vgg --ema"
    other = f"{python} {yardstick} --time --config {config} --precision bf16"
    flow = f"{ours} benchmark_train --task flow --dataset latents --model_name {given['dit']}"
    flow += f" {given['steps']} {device} --mix_precision bf16 --no_compile --batch_size {2 * size}"
    data = f"cifar10 --data_path {cifar10}" if options.cifar10 else "shapes --resolution 32"
    train = f"{ours} train --task flow {device} --ckpt_dir {runs} --dataset {data}"
    bands = f"{python} -m timeit -s {' '.join(CONVS.split())}"
    tests = [path for path in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in path.read_text()]
    lines = f"""
        vae_256 35 - {vae} {near}
        yardstick_256 25 - {other} {near}
        vae_256_plain 25 yardstick_256 {plain} {near}
        dit 30 - {flow}
        vae_256_profile 30 - {vae} {near} --profile 15
        vae_256_compiled 110 vae_256 {vae} {near} --compile
        dit_compiled 60 dit {flow} --compile
        attention 45 - {plain} {near} --compare_attention {given["tokens"]}
        convs_12 15 - {bands.format(options.device, size, 12)}
        convs_16 15 - {bands.format(options.device, size, 16)}
        vae_1024 35 - {vae} {far}
        yardstick_1024 25 - {other} {far}
        vae_1024_plain 25 yardstick_1024 {plain} {far}
        checkpoint 45 - {flow} --checkpoint --ckpt_dir {runs}
        vae_256_no_lpips 25 vae_256 {vae} {near} --perceptual_weight 0
        schedules 30 - {vae} {near} --compare_schedules --steps {given["few"]}
        loop 30 - {vae} {near} --compare_with_bare_loop --steps {given["few"]}
        mean_flow 35 dit {flow} --objective mean_flow --compare_objectives
        mean_flow_compiled 60 mean_flow {flow} --objective mean_flow --compile
        vae_256_compiled_profile 40 - {vae} {near} --compile --profile 15
        dit_compiled_profile 40 - {flow} --compile --profile 15
        vae_1024_compiled 80 vae_1024 {vae} {far} --compile
        run_on_{data.split()[0]} 80 - {train} --model_name {given["net"]} {given["often"]}
        gpu_tests 90 - {python} -m pytest -q -m gpu -p no:cacheprovider {join(map(str, tests))}"""
    parts = [line.split(maxsplit=3) for line in lines.strip().splitlines()]
    parts = [part for part in parts if options.yardstick or not part[0].startswith("yardstick")]
    names = [part[0] for part in parts]
    chosen = options.only or names
    if unknown := {*chosen} - {*names}:
        raise ValueError(f"--only {unknown.pop()}: there are {', '.join(names)}")
    return [(name, float(s), base, split(text)) for name, s, base, text in parts if name in chosen]


def measure(command: list[str], limit: float, log: TextIO) -> dict:
    """How a command of at most ``limit`` seconds ended, with the JSON that it printed."""
    print(f"\n== {join(command)}", file=log, flush=True)
    begun, start, ended = time.monotonic(), log.tell(), "out of time"
    how = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": ROOT}
    with subprocess.Popen(command, **how) as process:
        try:
            ended = f"failed ({process.wait(limit)})"
        except subprocess.TimeoutExpired:
            process.terminate()  # a training saves, and says what it did
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, and its workers
    log.seek(start)
    text = log.read()
    said = [line for line in text.splitlines() if line] or [""]
    result = {"said": [*said[-1:], *(line for line in said if "rror: " in line)][-1]}
    if process.returncode == 0:
        ended = "ok"
        if found := re.search(r"^\{", text, re.MULTILINE):
            result = json.JSONDecoder().raw_decode(text, found.start())[0]
        elif bill := re.search(r"done: (.* \((.*) img/s\).*)", text):
            result = {"said": bill[1], "img_per_s": float(bill[2])}
    return {"ended": ended, "seconds": time.monotonic() - begun, "result": result}


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table, whose columns are the keys of the rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in names] for row in rows]
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c or "") for c in row] for row in cells]
    cells = [[cell.replace("|", "/")[:150] for cell in row] for row in cells]
    return [f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *cells]]


def report(rows: list[dict]) -> str:
    """What is measured so far, as Markdown."""
    speeds = {row["part"]: row["result"].get("img_per_s") for row in rows}
    lines, details = [], []
    for row in rows:
        result, speed, base = row["result"], speeds[row["part"]], speeds.get(row["over"])
        line = {"part": row["part"], "ended": row["ended"], "s": round(row["seconds"])}
        line |= {name: result.get(name) for name in COLUMNS}
        line["GiB"] = result.get("peak_memory", 0) / 2**30 or None
        more = {f"img_per_s over {row['over']}": speed / base} if speed and base else {}
        more |= {name: result[name] for name in MORE if result.get(name)}
        more = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items()]
        lines.append(line | {"more": ", ".join(more)})
        if found := result.get("kernels") or result.get("attention"):
            details += ["", f"## {row['part']}", "", *table(found)]
    return "\n".join([*table(lines), *details, ""])


def main(argv: list[str] | None = None) -> int:
    """Measures all parts; 1 where one did not end well."""
    options = parse(GpuBenchOptions, argv, __doc__)
    from wfimagevae.engine.device import use_device

    use_device(options.device)  # or all parts would fail, one by one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the part, too
    rows, folder = [], Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    with TemporaryDirectory(dir=folder, prefix="runs-") as runs, ExitStack() as files:
        parts = plan(options, runs)  # what it refuses costs no earlier results
        results = files.enter_context((folder / "results.jsonl").open("w"))
        log = files.enter_context((folder / "log.txt").open("w+", errors="replace"))
        for i, (name, seconds, base, command) in enumerate(parts):
            # What a part leaves of its time is shared by those behind it.
            left = (end - time.monotonic()) * seconds / sum(part[1] for part in parts[i:])
            row = measure(command, max(left, 1), log)
            rows.append({"part": name, "over": base, "command": join(command)} | row)
            print(json.dumps(rows[-1]), file=results, flush=True)
            write_text(folder / "table.md", report(rows))
            said = row["result"].get("said", "")
            print(f"{name}: {row['ended']}, {row['seconds']:.0f} s {said}", flush=True)
    print(report(rows))
    return int(any(row["ended"] != "ok" for row in rows))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
