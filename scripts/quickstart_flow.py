"""The second half of the quick start: a small flow learns to draw what a prompt says.

make quickstart                               after the autoencoder, about 7 minutes on two cores
python scripts/quickstart_flow.py --steps 20  the same path in short, for a check
"""

import os
import time
from pathlib import Path

from quickstart import QuickstartOptions, make_folder, plan_training, run_recipe, run_script, say

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.subjects import records_folder
from wfimagevae.options import new_defaults, option
from wfimagevae.task.bench_options import FlowBenchOptions

ROOT = Path(__file__).resolve().parents[1]
# Flags of the training, whose steps are timed before.
FLAGS = {
    "dataset": "shapes",
    "resolution": 32,
    "model_name": "FlowDiT-S/8",
    "model_config": ROOT / "examples" / "flow-shapes-text-small.json",
    "text_encoder": "bytes",
    "text_length": 20,  # bytes: "an orange triangle" has 18
    "class_conditional": 0,
    "batch_size": 128,
    "lr": 6e-3,
    "time_mean": -0.8,  # nearer to the noise: there the shape is decided
    "time_std": 0.8,
    "ema_decay": 0.99,
}
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
GUIDANCE = 3
SAMPLING = ("--sampler", "euler", "--steps", 20, "--guidance_scale", GUIDANCE)


@new_defaults(minutes=6.5)
class FlowQuickstartOptions(QuickstartOptions):
    """quick start"""

    output: str = option(
        "quickstart",
        "folder of the quick start; this half writes DIR/flow, made anew each time",
        "DIR",
    )


def main(argv: list[str] | None = None) -> None:
    """Runs every step as a user would type it."""
    args = parse(FlowQuickstartOptions, argv, __doc__)
    started = time.perf_counter()
    import numpy as np
    import torch
    from PIL import Image

    from wfimagevae.task.bench import flow_benchmark

    quickstart = Path(os.path.relpath(args.output, ROOT))
    os.chdir(ROOT)  # the commands below are those of a user in the repository's folder
    output = quickstart / "flow"
    make_folder(output)
    say("A flow learns captioned shapes, drawn as they are needed")
    flags = FLAGS | {"optimizer": "muon" if hasattr(torch.optim, "Muon") else "adamw"}
    timed = FlowBenchOptions(**flags)
    plan = plan_training(args, flow_benchmark, timed, (FEWEST_STEPS, MOST_STEPS))
    steps = plan["max_steps"]
    flags |= {
        "log_steps": max(1, min(100, steps // 4)),
        "csv_log_steps": max(1, min(20, steps // 4)),
        "eval_steps": steps,
        "eval_num_samples": 32 if args.steps else 128,
        "sampler": "euler",
        "sampling_steps": 20,
        "guidance_scale": GUIDANCE,
        "dataset_num_worker": 0,  # drawing takes little, and two cores have none to spare
    }
    run_dir = run_recipe("examples/train_flow.sh", output, "shapes", plan | flags)

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
    folder, again = output / "hf_flow", output / "samples_by_hf_flow"
    run_script("scripts/save_hf_model.py", *model, "--save_dir", folder)
    model = ("--from_pretrained", folder, "--output_dir", again)
    few = ("--prompts_path", prompts, "--num_images", 2, "--batch_size", 16)
    run_script("scripts/generate.py", *model, *few, *SAMPLING, *device)
    for second in again.glob("a*.png"):
        pixels = [np.asarray(Image.open(f / second.name), np.int16) for f in (samples, again)]
        if abs(pixels[0] - pixels[1]).max() > 1:  # batches of another size round otherwise
            raise ValueError(f"{second} differs from its like in {samples}: the export is wrong")
    print("the exported flow draws the same pictures")
    minutes = (time.perf_counter() - started) / 60
    say(f"Generated shapes, after {steps} steps and {minutes:.1f} minutes")
    print(f"samples         {records_folder(samples) / 'grid.png'}")
    print(f"from noise      {output / 'pictures' / 'denoising.png'}")
    sheet = quickstart / "contact_sheet.png"
    if sheet.exists():
        print(f"reconstruction  {sheet}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
