"""The benchmark of a GPU: what it measures, goes on after, and leaves when it is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from scripts import benchmark_gpu
from scripts.benchmark_gpu import GpuBenchOptions, main, plan
from tests.refusals import refused
from tests.running import ROOT
from wfimagevae.command_line import parse
from wfimagevae.files import read_json_lines
from wfimagevae.task.bench_options import FlowBenchOptions, VaeBenchOptions
from wfimagevae.task.flow_options import FlowOptions

# Noise before the JSON, as warnings are.
PRINTS = "import sys; print('loading', file=sys.stderr); print({!r})"
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("done: 8 images in 0:00:02 (4.25 img/s), 0.1 cuda hours, 3 % waiting", flush=True)
time.sleep(60)
"""


def part(name, code, seconds=10.0, over="-"):
    return name, seconds, over, [sys.executable, "-c", code]


def prints(name, over="-", **result):
    return part(name, PRINTS.format(json.dumps(result, indent=2)), over=over)


def test_parts_go_on_after_failures_and_late_ones(tmp_path, monkeypatch, capsys):
    parts = [
        prints("slow", img_per_s=2.0, mfu=0.25, kernels=[{"kernel": "a|b", "ms": 1.5}]),
        part("broken", "raise ValueError('out of luck')"),
        part("endless", "import time; time.sleep(60)", seconds=0.5),
        part("training", SAVES, seconds=2.0),
        prints("fast", over="slow", img_per_s=5.0),
    ]
    monkeypatch.setattr(benchmark_gpu, "plan", lambda *_: parts)
    monkeypatch.setattr(benchmark_gpu, "GRACE", 2)
    begun = time.monotonic()
    flags = ["--device", "cpu", "--output_dir", f"{tmp_path}/new", "--minutes", "1"]
    assert main(flags) == 1
    assert time.monotonic() - begun < 60
    rows = {row["part"]: row for row in read_json_lines(tmp_path / "new" / "results.jsonl")}
    ends = {name: row["ended"] for name, row in rows.items()}
    assert ends["broken"] == "failed (1)" and ends["endless"] == "out of time"
    assert ends["slow"] == ends["training"] == ends["fast"] == "ok"
    assert rows["broken"]["result"]["said"] == "ValueError: out of luck"
    assert rows["training"]["result"]["img_per_s"] == 4.25
    assert rows["slow"]["result"]["mfu"] == 0.25
    text = (tmp_path / "new" / "table.md").read_text()
    printed = capsys.readouterr().out
    assert text in printed and re.search(r"broken: failed \(1\), .* out of luck\n", printed)
    assert "| 5 |" in text and "img_per_s over slow 2.5" in text and "| a/b | 1.5 |" in text
    assert "loading" in (tmp_path / "new" / "log.txt").read_text()
    # What is refused leaves them.
    monkeypatch.setattr(benchmark_gpu, "plan", plan)
    refused("--only slow: there are", main, [*flags, "--only", "slow"])
    refused("cuda:99", main, [*flags, "--device", "cuda:99"])
    assert len(read_json_lines(tmp_path / "new" / "results.jsonl")) == 5


def test_a_kill_leaves_what_was_measured_and_no_process(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    parts = [prints("first", img_per_s=3.5), part("second", f"{code}; time.sleep(600)")]
    code = f"from scripts import benchmark_gpu as b; b.plan = lambda *_: {parts!r}; b.main()"
    words = [sys.executable, "-c", code, "--device", "cpu", "--output_dir", tmp_path / "out"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    (row,) = read_json_lines(tmp_path / "out" / "results.jsonl")
    assert row["result"] == {"img_per_s": 3.5}
    assert "| first | ok |" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_every_command_of_the_plan_has_flags_that_there_are():
    options = GpuBenchOptions(yardstick="x.py", cifar10="some where", batch_size=8)
    kinds = {"vae": VaeBenchOptions, "flow": FlowBenchOptions}
    parts = {}
    for name, _, _, words in plan(options, "runs"):
        if "benchmark_train" in words:
            flags = words[words.index("benchmark_train") + 1 :]
            parts[name] = parse(kinds["flow" if "--task" in flags else "vae"], flags)
        elif "train" in words:
            parts[name] = parse(FlowOptions, words[words.index("train") + 1 :])
    assert len(parts) == 19
    assert parts["vae_256"].batch_size == 8 and parts["vae_256"].random_vgg
    assert parts["dit"].model_name == "DiT-XL/2" and parts["vae_1024"].resolution == 1024
    assert parts["run_on_cifar10"].data_path == [str(ROOT / "some where")]
    names = [part[0] for part in plan(GpuBenchOptions(only=["vae_1024", "dit"]), "runs")]
    assert names == ["dit", "vae_1024"]
    refused("--only nothing: there are vae_256", plan, GpuBenchOptions(only=["nothing"]), "runs")
    refused("--only yardstick_256", plan, GpuBenchOptions(only=["yardstick_256"]), "runs")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_whole_command_is_rehearsed_on_a_cpu(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "benchmark_gpu.py", "--device", "cpu", "--tiny"]
    command += ["--minutes", "40", "--output_dir", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    rows = {row["part"]: row for row in read_json_lines(tmp_path / "results.jsonl")}
    assert done.returncode == 0, (tmp_path / "log.txt").read_text()
    results = {name: row["result"] for name, row in rows.items()}
    assert results.keys() == {part[0] for part in plan(GpuBenchOptions(), "runs")}
    assert "skipped" in results.pop("gpu_tests")["said"]
    assert len(results["attention"]["attention"]) == 16
    assert all("per loop" in results.pop(f"convs_{n}")["said"] for n in (12, 16))
    assert all(result["img_per_s"] > 0 for result in results.values())
    assert len(results["dit_compiled_profile"]["kernels"]) == 15
    assert results["checkpoint"]["checkpoint_bytes"] > 10**8
    assert "8 images in" in results["run_on_shapes"]["said"]
