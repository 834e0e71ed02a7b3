"""The whole story on real photographs, without a download: train, reconstruct, evaluate, export.

make quickstart                      about 8 minutes on two CPU cores, less on a GPU
python scripts/quickstart.py --steps 20    the same path in short; need not beat the baseline
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wfimagevae.command_line import parse, run_cli
from wfimagevae.engine.options import DeviceOptions
from wfimagevae.files import read_json
from wfimagevae.options import Count, Positive, option
from wfimagevae.task.bench_options import BenchOptions, VaeBenchOptions

ROOT = Path(__file__).resolve().parents[1]

# Photographs in colour that scikit-image's wheel carries; the stereo pair is one scene.
TRAINING = (
    "astronaut.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
HELD_OUT = ("chelsea.png", "coffee.png")

# Flags of the training, whose steps are timed before.
FLAGS = {
    "model_config": ROOT / "examples" / "wfvae2-image-small.json",
    "resolution": 64,
    "batch_size": 8,
    "grad_accum_steps": 1,
    "lr": 1.5e-3,
    "disc_lr_ratio": 0.5,
    "disc_num_layers": 3,
    "perceptual_weight": 0,
    "ema_decay": 0.995,
}
LARGEST_SIDE = 768
MARKER = ".made-by-quickstart"
MOST_STEPS, FEWEST_STEPS = 4000, 1000
# Reading, validation and the discriminator's turns, over the steps alone; measured on two cores.
OVERHEAD = 1.25


class QuickstartOptions(DeviceOptions):
    """quick start"""

    steps: Count | None = option(
        None,
        "training steps, for a short check of the path; not given: as many as fit into --minutes",
        "N",
    )
    minutes: Positive = option(
        7.0, "time for training; what comes before and after takes about one more", "M"
    )
    output: str = option(
        "quickstart", "folder for everything that is written; made anew each time", "DIR"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs every step as a user would type it; returns the exit status."""
    args = parse(QuickstartOptions, argv, __doc__)
    started = time.perf_counter()
    from PIL import Image

    from wfimagevae.eval.report import format_value, markdown_table
    from wfimagevae.pictures.grid import save_contact_sheet
    from wfimagevae.task.bench import vae_benchmark

    output = Path(os.path.relpath(args.output, ROOT))
    os.chdir(ROOT)  # the commands below are those of a user in the repository's folder
    make_folder(output)
    say("Photographs from scikit-image become manifests")
    copy_photographs(output)
    timed = VaeBenchOptions(**FLAGS, wavelet_loss=True, ema=True, disc_start=MOST_STEPS)
    plan = plan_training(args, vae_benchmark, timed, (FEWEST_STEPS, MOST_STEPS))

    say("Training a small WFVAE2Image for {max_steps} steps in {mix_precision}".format_map(plan))
    print("without the perceptual loss: LPIPS needs VGG weights, which would be a download")
    steps = plan["max_steps"]
    flags = FLAGS | {
        "train_image_dir": output / "train.jsonl",
        "eval_image_dir": output / "val.jsonl",
        # It joins at the very end: enough to see it play, too short to change figures.
        "disc_start": round(0.95 * steps),
        "log_steps": max(1, min(50, steps // 4)),
        "csv_log_steps": max(1, min(10, steps // 4)),
        "eval_steps": max(1, steps // 4),
        "eval_resolution": 256,
        "eval_crop_size": 256,
        "dataset_num_worker": 1,
        "index_cache_dir": output / "index",
    }
    run_dir = run_recipe("train_wfimagevae.sh", output, "quickstart", plan | flags)

    say("Reconstructing the held-out photographs")
    reconstruct(run_dir, output / "reconstructed", output, args.device)
    say("Baseline: bicubic, 8x down and up")
    # What as few positions say without a network.
    for original in held_out(output, "."):
        with Image.open(original) as image:
            image = image.convert("RGB")
        small = image.resize((-(-image.width // 8), -(-image.height // 8)), Image.BICUBIC)
        path = output / "bicubic" / original.relative_to(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize(image.size, Image.BICUBIC).save(path)
    print(f"written: {output / 'bicubic'}")
    say("Evaluating both")
    scores = {}
    for name in ("reconstructed", "bicubic"):
        result = output / f"{name}.json"
        images = ("--real_image_dir", output / "val.jsonl", "--generated_image_dir", output / name)
        options = ("--metric", "psnr", "ssim", "--num_workers", 0, "--output_json", result)
        run_script("scripts/eval_image.py", *images, *options, "--device", args.device)
        scores[name] = read_json(result)

    say("Exporting to Hugging Face format and reading it back")
    export(run_dir, output, args.device)
    say("Report")
    sheet = output / "contact_sheet.png"
    names = {"bicubic 8x": "bicubic", "reconstruction": "reconstructed"}
    columns = [(title, held_out(output, name)) for title, name in names.items()]
    save_contact_sheet(sheet, held_out(output, "."), columns)
    run_script("scripts/plot_training.py", run_dir, "--output", output / "report.html")

    minutes = (time.perf_counter() - started) / 60
    titles = {"reconstructed": "WFVAE2Image, small", "bicubic": "bicubic, 8x down and up"}
    rows = [
        [title, *(format_value(metric, scores[name][metric]) for metric in ("psnr", "ssim"))]
        for name, title in titles.items()
    ]
    say(f"Held-out photographs ({', '.join(HELD_OUT)}), after {minutes:.1f} minutes")
    print(markdown_table(["", "PSNR, dB", "SSIM"], rows))
    print(f"contact sheet   {sheet}")
    print(f"loss plots      {run_dir / 'training_losses_live_page1.png'} and _page2.png")
    print(f"report          {output / 'report.html'}")
    print(f"model           {output / 'hf_model'}")
    return check(scores, short=args.steps is not None)


def say(title: str) -> None:
    """Announces a part."""
    print(f"\n== {title}", flush=True)


def run_script(script: str, *arguments) -> None:
    """Runs one of this repository's scripts with this interpreter."""
    run_command([sys.executable, script, *map(str, arguments)])


def run_command(words: Sequence[str], settings: dict[str, object] | None = None) -> None:
    """Shows and runs a command with these environment variables; ValueError where it fails."""
    values = {name: str(value) for name, value in (settings or {}).items()}
    command = shlex.join("python" if word == sys.executable else word for word in words)
    assignments = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    print(" ".join(["$", *assignments, command]), flush=True)
    environment = os.environ | {"PYTHON": sys.executable} | values
    status = subprocess.run(words, env=environment).returncode
    if status:
        raise ValueError(f"{command} ended with status {status}; see above")


def make_folder(folder: Path) -> None:
    """Makes an empty folder; of what is in it, only what an earlier quick start left is removed.

    A folder that holds something else is a ValueError.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ValueError(f"{folder} was not made by the quick start; give another --output")
        print(f"removing what an earlier quick start left in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def copy_photographs(output: Path) -> None:
    """Writes the photographs, and train.jsonl and val.jsonl, which share no scene.

    Those for training come in all six orders of their colour channels: so few photographs show
    so few colours that a held-out cat's green eyes would come back brown. They are stored
    uncompressed: two cores would spend a fifth of the time on decoding them for small crops.
    """
    import skimage
    from PIL import Image

    source, target = Path(skimage.__file__).parent / "data", output / "photographs"
    target.mkdir()
    rows: dict[str, list[str]] = {"train": [], "val": list(HELD_OUT)}
    for name in TRAINING:
        with Image.open(source / name) as image:
            image = image.convert("RGB")
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        for order in itertools.permutations("RGB"):
            rows["train"].append(f"{Path(name).stem}-{''.join(order)}.bmp")
            bands = [image.getchannel(band) for band in order]
            Image.merge("RGB", bands).save(target / rows["train"][-1])
    for name in HELD_OUT:
        shutil.copyfile(source / name, target / name)
    for side, names in rows.items():
        lines = [json.dumps({"image_path": f"photographs/{name}"}) + "\n" for name in names]
        (output / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{output / 'train.jsonl'}: {', '.join(TRAINING)}, in six orders of their channels")
    print(f"{output / 'val.jsonl'}: {', '.join(HELD_OUT)}")


def plan_training(
    args: QuickstartOptions, benchmark: Callable, timed: BenchOptions, bounds: tuple[int, int]
) -> dict[str, Any]:
    """Flags of a recipe: the fastest precision and number of threads, and how many steps.

    Those are as many as fit into the minutes, between ``bounds``, by the ``benchmark`` of options.
    """
    import torch

    from wfimagevae.engine.cost import seconds_per_call
    from wfimagevae.engine.device import use_device

    how = {"device": args.device, "compile": 0}  # compiling would take longer than it saves
    # Threads wait for each other hundreds of times a step: on a busy machine one is faster.
    device, cores, seconds = use_device(args.device), torch.get_num_threads(), {}
    for threads in sorted({1, min(8, cores), cores}) if device.type == "cpu" else [cores]:
        torch.set_num_threads(threads)
        for precision in ("fp32", "bf16"):
            step = benchmark(timed.changed(**how, mix_precision=precision)).step_seconds
            seconds[precision, threads] = seconds_per_call(step, device, min_seconds=0)
    torch.set_num_threads(cores)
    precision, threads = min(seconds, key=seconds.get)
    listed = [f"{1000 * s:.0f} ms ({name}, threads: {n})" for (name, n), s in seconds.items()]
    print(f"device {device}; a training step takes {', '.join(listed)}")
    fitting = int(60 * args.minutes / (seconds[precision, threads] * OVERHEAD)) // 50 * 50
    steps = args.steps or min(max(fitting, bounds[0]), bounds[1])
    return how | {"omp_num_threads": threads, "mix_precision": precision, "max_steps": steps}


def run_recipe(script: str, output: Path, name: str, flags: dict) -> Path:
    """Trains by a shell recipe, with variables for these flags and some more; the run's folder."""
    common = {
        "output_dir": output / "runs",
        "exp_name": name,
        "lr_schedule": "cosine",
        "warmup_steps": min(50, flags["max_steps"] // 10),
        "save_ckpt_step": 0,
    }
    settings = {flag.upper(): value for flag, value in (common | flags).items()}
    run_command(["bash", script], settings)
    (run_dir,) = (output / "runs").glob(f"{name}-*")
    return run_dir


def reconstruct(model: Path, folder: Path, output: Path, device: str) -> None:
    """Reconstructs the held-out photographs at their own sizes."""
    images = ("--real_image_dir", output / "val.jsonl", "--generated_image_dir", folder)
    options = ("--num_workers", 0, "--device", device)
    run_script("scripts/recon_image.py", "--from_pretrained", model, *images, *options)


def held_out(output: Path, folder: str) -> list[Path]:
    """The held-out photographs, or their counterparts in a folder of results."""
    return [output / folder / "photographs" / name for name in HELD_OUT]


def export(run_dir: Path, output: Path, device: str) -> None:
    """Saves the model in Hugging Face format; read back, it must reconstruct the same pixels."""
    folder, again = output / "hf_model", output / "reconstructed_by_hf_model"
    model = ("--from_pretrained", run_dir, "--save_dir", folder)
    run_script("scripts/save_hf_model.py", *model, "--metrics_json", output / "reconstructed.json")
    reconstruct(folder, again, output, device)
    pairs = zip(held_out(output, "reconstructed"), held_out(output, again.name), strict=True)
    for first, second in pairs:
        if first.read_bytes() != second.read_bytes():
            raise ValueError(f"{first} and {second} differ: the export changed the model")
    print("the exported model reconstructs the same pixels")


def check(scores: dict, short: bool) -> int:
    """Exit status: 0 if the reconstruction beats the baseline, or in the short form."""
    ours, baseline = scores["reconstructed"], scores["bicubic"]
    if all(ours[metric] > baseline[metric] for metric in ("psnr", "ssim")):
        print("the reconstruction beats the baseline")
        return 0
    print(f"the reconstruction does not beat the baseline{' yet (short form)' if short else ''}")
    return 0 if short else 1


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
