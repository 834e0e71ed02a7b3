"""The second half of the quick start: a small flow learns to draw what a prompt says.

make quickstart                               after the autoencoder, about 7 minutes on two cores
python scripts/quickstart_flow.py --steps 20  the same path in short, for a check
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from quickstart import QuickstartOptions, make_folder, plan_training, run_recipe, run_script, say

from wfimagevae.command_line import parse, run_cli
from wfimagevae.options import option

ROOT = Path(__file__).resolve().parents[1]
MODEL_NAME, MODEL_CONFIG = "FlowDiT-S/8", ROOT / "examples" / "flow-shapes-text-small.json"
RESOLUTION, BATCH_SIZE, LEARNING_RATE = 32, 128, 6e-3
TEXT_LENGTH = 20  # bytes: "an orange triangle" has 18
PROMPTS = (
    "a red circle",
    "an orange square",
    "a yellow triangle",
    "a green star",
    "a cyan ring",
    "a blue cross",
    "a purple heart",
    "a pink moon",
)
MOST_STEPS, FEWEST_STEPS = 8000, 1000
# Optimizer, average and drawing the shapes, measured on two cores.
OVERHEAD = 1.4
GUIDANCE = 3
SAMPLING = ("--sampler", "euler", "--steps", 20, "--guidance_scale", GUIDANCE)


class FlowQuickstartOptions(QuickstartOptions, defaults={"minutes": 6.5}):
    """quick start"""

    output: str = option(
        "quickstart",
        "folder of the quick start; this half writes DIR/flow, made anew each time",
        "DIR",
    )


def main(argv: list[str] | None = None) -> int:
    """Runs every step as a user would type it; returns the exit status."""
    args = parse(FlowQuickstartOptions, argv, __doc__)
    started = time.perf_counter()
    quickstart = Path(os.path.relpath(args.output, ROOT))
    os.chdir(ROOT)  # the commands below are those of a user in the repository's folder
    output = quickstart / "flow"
    make_folder(output)
    steps, run_dir = train(output, args)

    say("Generating: a row a prompt")
    model, device = ("--from_pretrained", run_dir), ("--device", args.device)
    prompts, samples = output / "prompts.txt", output / "samples"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    many = ("--prompts_path", prompts, "--num_images", 8, "--batch_size", 64)
    run_script("scripts/generate.py", *model, "--output_dir", samples, *many, *SAMPLING, *device)
    say("On the way from noise to data")
    pictures = ("--output_dir", output / "pictures", "--num_rows", 4, "--prompt", *PROMPTS[:4])
    run_script("scripts/visualize_flow.py", *model, *pictures, *SAMPLING, *device)
    say("Energy distance to shapes that training never drew (0: alike)")
    count = 64 if args.steps else 256
    measure = ("--dataset", "shapes", "--num_images", count, "--metric", "energy_distance")
    result = ("--output_json", output / "energy_distance.json")
    run_script("scripts/eval_generation.py", *model, *measure, *SAMPLING, *result, *device)

    say("Exporting to Hugging Face format and reading it back")
    export(run_dir, output, samples, device)
    minutes = (time.perf_counter() - started) / 60
    from wfimagevae.generate.subjects import records_folder

    say(f"Generated shapes, after {steps} steps and {minutes:.1f} minutes")
    print(f"samples         {records_folder(samples) / 'grid.png'}")
    print(f"from noise      {output / 'pictures' / 'denoising.png'}")
    sheet = quickstart / "contact_sheet.png"
    if sheet.exists():
        print(f"reconstruction  {sheet}")
    return 0


def train(output: Path, args: FlowQuickstartOptions) -> tuple[int, Path]:
    """Trains by examples/train_flow.sh; returns the number of steps and the run's folder."""
    import torch

    say("A flow learns captioned shapes, drawn as they are needed")
    plan = plan_training(args, build_loss, OVERHEAD, (FEWEST_STEPS, MOST_STEPS))
    steps = plan.steps
    settings = {
        "DATASET": "shapes",
        "RESOLUTION": RESOLUTION,
        "MODEL_NAME": MODEL_NAME,
        "MODEL_CONFIG": MODEL_CONFIG,
        "TEXT_ENCODER": "bytes",
        "TEXT_LENGTH": TEXT_LENGTH,
        "CLASS_CONDITIONAL": 0,
        "DEVICE": args.device,
        "BATCH_SIZE": BATCH_SIZE,
        "LR": LEARNING_RATE,
        "OPTIMIZER": "muon" if hasattr(torch.optim, "Muon") else "adamw",
        "TIME_MEAN": -0.8,  # nearer to the noise: there the shape is decided
        "TIME_STD": 0.8,
        "EMA_DECAY": 0.99,
        "LOG_STEPS": max(1, min(100, steps // 4)),
        "CSV_LOG_STEPS": max(1, min(20, steps // 4)),
        "EVAL_STEPS": steps,
        "EVAL_NUM_SAMPLES": 32 if args.steps else 128,
        "SAMPLER": "euler",
        "SAMPLING_STEPS": 20,
        "GUIDANCE_SCALE": GUIDANCE,
        "DATASET_NUM_WORKER": 0,  # drawing takes little, and two cores have none to spare
    }
    return steps, run_recipe("examples/train_flow.sh", output, "shapes", plan, settings)


def build_loss(device) -> Callable:
    """A loss of the small network on one batch."""
    import torch

    from wfimagevae.model.registry import ModelRegistry
    from wfimagevae.model.text import open_text_encoder

    keys = json.loads(MODEL_CONFIG.read_text(encoding="utf-8"))
    text = open_text_encoder("bytes", device, TEXT_LENGTH)
    build = ModelRegistry.get_model(MODEL_NAME)
    model = build(input_size=RESOLUTION, in_channels=3, **keys, **text.config_keys).to(device)
    x = torch.randn(BATCH_SIZE, 3, RESOLUTION, RESOLUTION, device=device)
    t = torch.rand(BATCH_SIZE, device=device)
    condition = text(PROMPTS * (BATCH_SIZE // len(PROMPTS)))
    return lambda: model(x, t, condition).float().square().mean()


def export(run_dir: Path, output: Path, samples: Path, device: tuple[str, str]) -> None:
    """Saves the flow in Hugging Face format; read back, it must draw the same pictures."""
    import numpy as np
    from PIL import Image

    folder, again = output / "hf_flow", output / "samples_by_hf_flow"
    run_script("scripts/save_hf_model.py", "--from_pretrained", run_dir, "--save_dir", folder)
    model = ("--from_pretrained", folder, "--output_dir", again)
    few = ("--prompts_path", output / "prompts.txt", "--num_images", 2, "--batch_size", 16)
    run_script("scripts/generate.py", *model, *few, *SAMPLING, *device)
    for second in again.glob("a*.png"):
        pixels = [np.asarray(Image.open(f / second.name), np.int16) for f in (samples, again)]
        if abs(pixels[0] - pixels[1]).max() > 1:  # batches of another size round otherwise
            raise ValueError(f"{second} differs from its like in {samples}: the export is wrong")
    print("the exported flow draws the same pictures")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
