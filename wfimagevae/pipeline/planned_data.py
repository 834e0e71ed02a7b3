"""What a step would train on and be validated on, and for how long."""

import math
import os

from wfimagevae.dataset.open import Sources, as_list, build_image_data, open_images
from wfimagevae.dataset.shards.specs import is_remote
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.flags import image_size
from wfimagevae.pipeline.loading import LoadedPipeline
from wfimagevae.pipeline.steps import MergedStep
from wfimagevae.task.flow_space import build_datasets

# What only training data has, as it is where there is none of it.
_OF_TRAINING = {"data_weights": None, "aspect_buckets": 0, "reduced_min_sizes": []}


def data_and_length(
    loaded: LoadedPipeline, step: MergedStep, options: TrainingOptions
) -> list[str]:
    """Lines of the plan that say what a step trains on, and how many updates.

    Args:
        loaded: A checked file.
        step: One of its steps.
        options: Every flag's value of its training, without what earlier steps leave it.

    Raises:
        ValueError: data that its training would refuse, or that ends before its transition.
    """
    count = _count(step, options)
    world = int(os.environ.get("WORLD_SIZE", 1))
    size = image_size(step, loaded.content)
    name = step.source.name if step.source else options.dataset
    held_out = ", ".join(step.source.held_out) if step.source else ""
    shown = "counted when training begins" if count is None else f"{count:,} images"
    validates = held_out and options.eval_steps
    validation = f"validated on {held_out}" if validates else "no validation"
    lines = [f"   data {name}: {shown}, {size} px; {validation}"]
    batch = options.batch_size * options.grad_accum_steps * world
    told = f"of {options.batch_size} x {options.grad_accum_steps} x {world} = {batch} images"
    steps = options.max_steps
    if steps is None and count is not None:
        epoch = min(count / batch, options.max_steps_per_epoch or math.inf)
        steps = math.ceil(options.epochs * epoch)
        lines.append(f"   {options.epochs} epochs = {steps:,} updates {told}")
    elif steps is None:
        lines.append(f"   {options.epochs} epochs of updates {told}")
    else:
        lines.append(f"   {steps:,} updates {told}")
    return lines + _ending(options, steps)


def _ending(options: TrainingOptions, steps: int | None) -> list[str]:
    if not options.stop_metric:
        return []
    window = options.stop_window
    if steps is not None and steps // options.log_steps < window:
        raise PipelineError(
            f"unreachable transition: its mean is over {window} progress lines, and {steps} "
            f"updates with log_interval {options.log_steps} have "
            f"{steps // options.log_steps}; lower transition_on.window"
        )
    return [
        f"   ends earlier once {options.stop_metric} is below {options.stop_below:g}, the "
        f"mean of {window} progress lines"
    ]


def _count(step: MergedStep, options: TrainingOptions) -> int | None:
    """Opens a step's data; images of an epoch, None where counting them would download them."""
    if step.task == "vae":
        if options.eval_steps and not _is_away(options.eval_image_path):
            open_images(options, options.eval_image_path)
        if _is_away(options.image_path):
            return None
        return len(build_image_data(options, options.image_path))
    if options.dataset != "images":
        return len(build_datasets(options)[0])
    if _is_away(options.eval_data_path):
        options = options.changed(eval_steps=0)
    if not _is_away(options.data_path):
        return len(build_datasets(options)[0])
    held_out = options.eval_data_path if options.eval_steps else None
    if held_out and not options.better_captions:  # which may be of training images alone
        build_image_data(options.changed(**_OF_TRAINING), held_out)
    return None


def _is_away(sources: Sources | None) -> bool:
    return any(is_remote(str(path)) for path in as_list(sources or []))
