"""The whole story on real photographs, without a download: train, reconstruct, evaluate, export.

make quickstart                      about 8 minutes on two CPU cores, less on a GPU
python scripts/quickstart.py --steps 20    the same path in short, for a check
"""

import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, add_device_arg, positive_float, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.engine.commands import make_folder, run_command, run_script, say

ROOT = Path(__file__).resolve().parents[1]
MODEL_CONFIG = ROOT / "examples" / "wfvae2-image-small.json"

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

RESOLUTION, BATCH_SIZE, LEARNING_RATE = 64, 8, 1.5e-3
LARGEST_SIDE = 768
MOST_STEPS, FEWEST_STEPS = 4000, 1000
# Optimizer, average, reading, validation and the discriminator's turns, measured on two cores.
OVERHEAD = 1.4
# The discriminator joins at the very end: enough to see it play, too short to change figures.
DISCRIMINATOR_SHARE = 0.05


def build_parser() -> Parser:
    """Flags of the quick start."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="training steps, for a short check of the path that need not beat the baseline; "
        "not given: as many as fit into --minutes",
    )
    parser.add_argument(
        "--minutes",
        type=positive_float,
        default=7.0,
        metavar="M",
        help="time for training; what comes before and after takes about one more",
    )
    parser.add_argument(
        "--output",
        default="quickstart",
        metavar="DIR",
        help="folder for everything that is written; made anew each time",
    )
    add_device_arg(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every step as a user would type it; returns the exit status."""
    args = build_parser().parse_args(argv)
    started = time.perf_counter()
    output = Path(os.path.relpath(args.output, ROOT))
    os.chdir(ROOT)  # the commands below are those of a user in the repository's folder
    make_folder(output)
    say("Photographs from scikit-image become manifests")
    copy_photographs(output)
    plan = make_plan(args.device, args.minutes, args.steps)

    say(f"Training a small WFVAE2Image for {plan.steps} steps in {plan.precision}")
    print("without the perceptual loss: LPIPS needs VGG weights, which would be a download")
    run_dir = train(output, plan, args.device)

    say("Reconstructing the held-out photographs")
    reconstruct(run_dir, output / "reconstructed", output, args.device)
    say("Baseline: bicubic, 8x down and up")
    write_baseline(output)
    say("Evaluating both")
    scores = {name: evaluate(output, name, args.device) for name in ("reconstructed", "bicubic")}

    say("Exporting to Hugging Face format and reading it back")
    export(run_dir, output, args.device)
    say("Report")
    sheet = draw_contact_sheet(output)
    run_script("scripts/plot_training.py", run_dir, "--output", output / "report.html")
    print_results(output, run_dir, scores, sheet, time.perf_counter() - started)
    return check(scores, short=args.steps is not None)


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


def make_plan(device: str, minutes: float, steps: int | None):
    """How to train here: as many steps as fit into the time, unless their number is given."""
    from wfimagevae.engine.planning import plan_training

    plan = plan_training(device, time_step, minutes, OVERHEAD, (FEWEST_STEPS, MOST_STEPS))
    return plan._replace(steps=steps) if steps else plan


def time_step(device, precision: str) -> float:
    """Seconds of a forward and backward pass of the small model on one batch."""
    import torch

    from wfimagevae.engine.device import autocast, synchronize
    from wfimagevae.model.registry import ModelRegistry

    torch.manual_seed(0)
    config = json.loads(MODEL_CONFIG.read_text(encoding="utf-8"))
    model = ModelRegistry.get_model("WFVAE2Image").from_config(config).to(device)
    images = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION, device=device) * 2 - 1
    images = images.to(memory_format=torch.channels_last)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with autocast(device, precision):
            loss = (model(images).sample - images).abs().mean()
        loss.backward()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def train(output: Path, plan, device: str) -> Path:
    """Trains by train_wfimagevae.sh and returns the run's folder."""
    steps = plan.steps
    settings = {
        "OMP_NUM_THREADS": plan.threads,
        "TRAIN_IMAGE_DIR": output / "train.jsonl",
        "EVAL_IMAGE_DIR": output / "val.jsonl",
        "OUTPUT_DIR": output / "runs",
        "EXP_NAME": "quickstart",
        "MODEL_CONFIG": MODEL_CONFIG,
        "DEVICE": device,
        "MIX_PRECISION": plan.precision,
        "MAX_STEPS": steps,
        "RESOLUTION": RESOLUTION,
        "BATCH_SIZE": BATCH_SIZE,
        "GRAD_ACCUM_STEPS": 1,
        "LR": LEARNING_RATE,
        "LR_SCHEDULE": "cosine",
        "WARMUP_STEPS": min(50, steps // 10),
        "DISC_LR_RATIO": 0.5,
        "DISC_NUM_LAYERS": 3,
        "DISC_START": round((1 - DISCRIMINATOR_SHARE) * steps),
        "PERCEPTUAL_WEIGHT": 0,
        "EMA_DECAY": 0.995,
        "SAVE_CKPT_STEP": 0,
        "LOG_STEPS": max(1, min(50, steps // 4)),
        "CSV_LOG_STEPS": max(1, min(10, steps // 4)),
        "EVAL_STEPS": max(1, steps // 4),
        "EVAL_RESOLUTION": 256,
        "EVAL_CROP_SIZE": 256,
        "DATASET_NUM_WORKER": 1,
        "INDEX_CACHE_DIR": output / "index",
    }
    run_command(["bash", "train_wfimagevae.sh"], settings)
    (run_dir,) = (output / "runs").glob("quickstart-*")
    return run_dir


def reconstruct(model: Path, folder: Path, output: Path, device: str) -> None:
    """Reconstructs the held-out photographs at their own sizes."""
    images = ("--real_image_dir", output / "val.jsonl", "--generated_image_dir", folder)
    options = ("--num_workers", 0, "--device", device)
    run_script("scripts/recon_image.py", "--from_pretrained", model, *images, *options)


def write_baseline(output: Path) -> None:
    """Held-out photographs, 8x smaller and back: what as few positions say without a network."""
    from PIL import Image

    for original in held_out(output, "."):
        with Image.open(original) as image:
            image = image.convert("RGB")
        small = image.resize((-(-image.width // 8), -(-image.height // 8)), Image.BICUBIC)
        path = output / "bicubic" / original.relative_to(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize(image.size, Image.BICUBIC).save(path)
    print(f"written: {output / 'bicubic'}")


def held_out(output: Path, folder: str) -> list[Path]:
    """The held-out photographs, or their counterparts in a folder of results."""
    return [output / folder / "photographs" / name for name in HELD_OUT]


def evaluate(output: Path, folder: str, device: str) -> dict[str, float]:
    """PSNR and SSIM of a folder of results."""
    result = output / f"{folder}.json"
    images = ("--real_image_dir", output / "val.jsonl", "--generated_image_dir", output / folder)
    options = ("--metric", "psnr", "ssim", "--num_workers", 0, "--output_json", result)
    run_script("scripts/eval_image.py", *images, *options, "--device", device)
    return json.loads(result.read_text(encoding="utf-8"))


def export(run_dir: Path, output: Path, device: str) -> None:
    """Saves the model in Hugging Face format; read back, it must reconstruct the same pixels."""
    folder, again = output / "hf_model", output / "reconstructed_by_hf_model"
    figures = ("--metrics_json", output / "reconstructed.json")
    run_script(
        "scripts/save_hf_model.py", "--from_pretrained", run_dir, "--save_dir", folder, *figures
    )
    reconstruct(folder, again, output, device)
    for first, second in zip(
        held_out(output, "reconstructed"), held_out(output, again.name), strict=True
    ):
        if first.read_bytes() != second.read_bytes():
            raise ValueError(f"{first} and {second} differ: the export changed the model")
    print("the exported model reconstructs the same pixels")


def draw_contact_sheet(output: Path) -> Path:
    """Original, baseline, reconstruction and its error, amplified."""
    from wfimagevae.pictures.contact_sheet import save_contact_sheet

    sheet = output / "contact_sheet.png"
    columns = [
        ("bicubic 8x", held_out(output, "bicubic")),
        ("reconstruction", held_out(output, "reconstructed")),
    ]
    save_contact_sheet(sheet, held_out(output, "."), columns)
    return sheet


def print_results(output: Path, run_dir: Path, scores: dict, sheet: Path, seconds: float) -> None:
    """The table and where everything is."""
    from wfimagevae.eval.report import format_value, markdown_table

    titles = {"reconstructed": "WFVAE2Image, small", "bicubic": "bicubic, 8x down and up"}
    rows = [
        [title, *(format_value(metric, scores[name][metric]) for metric in ("psnr", "ssim"))]
        for name, title in titles.items()
    ]
    say(f"Held-out photographs ({', '.join(HELD_OUT)}), after {seconds / 60:.1f} minutes")
    print(markdown_table(["", "PSNR, dB", "SSIM"], rows))
    print(f"contact sheet   {sheet}")
    print(f"loss plots      {run_dir / 'training_losses_live_page1.png'} and _page2.png")
    print(f"report          {output / 'report.html'}")
    print(f"model           {output / 'hf_model'}")


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
