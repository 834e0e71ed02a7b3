"""Pictures a trained flow: fields and paths of points, denoising and interpolations of images.

python scripts/visualize_flow.py --from_pretrained results/toy --output_dir pictures
python scripts/visualize_flow.py --from_pretrained results/flow --output_dir pictures \
    --class_labels circle star --num_rows 4 --guidance_scale 2
"""

from pathlib import Path
from typing import Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import (
    POINT_SETS,
    FlowComputeOptions,
    GeneratorOptions,
    PointSet,
    SamplingOptions,
)
from wfimagevae.generate.subjects import Subject, subjects_in_turn
from wfimagevae.options import Count, Options, Prompt, option

_OF_POINTS, _OF_IMAGES = ("field", "paths"), ("denoising", "interpolation")


class PictureOptions(Options):
    """pictures"""

    output_dir: str = option(..., "where pictures go", "DIR")
    pictures: list[Literal["field", "paths", "denoising", "interpolation"]] | None = option(
        None, "not given: field and paths of points, denoising and interpolation of images"
    )
    format: Literal["gif", "mp4"] = option(
        "gif", "of animations; mp4 needs ffmpeg, or pip install imageio-ffmpeg"
    )
    class_labels: list[str] | None = option(
        None, "numbers or names, taken in turn; not given: all classes, for the field none", "CLASS"
    )
    prompt: list[Prompt] | None = option(None, "what a flow that takes text shows, in turn", "TEXT")
    num_frames: Count = option(40, "frames of the field", "N")
    num_particles: Count = option(300, "particles on paths", "N")
    num_rows: Count = option(8, "images, or pairs of noises", "N")
    num_columns: Count = option(9, "pictures in a row, at least 2", "N")
    dataset: PointSet | None = option(
        None, "points shown in grey; not given: those that the model was trained on"
    )


class VisualizeOptions(GeneratorOptions, SamplingOptions, PictureOptions, FlowComputeOptions):
    """All flags of this command."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(VisualizeOptions, argv, __doc__)
    if options.num_columns < 2:
        raise ValueError(f"--num_columns {options.num_columns}: give at least 2")

    from wfimagevae.engine.device import use_device
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.pictures.animation import find_ffmpeg

    if options.format == "mp4":
        find_ffmpeg()
    generator = load_generator(options, use_device(options.device), options.mixed_precision)
    space = generator.facts["space"]
    possible = _OF_POINTS if space == "point" else _OF_IMAGES
    names = options.pictures or possible
    if impossible := [name for name in names if name not in possible]:
        raise ValueError(f"no {impossible[0]} of a flow of {space}s; choose {', '.join(possible)}")
    options = generator.resolve(options)
    if options.prompt and not generator.model.takes_text:
        raise ValueError(f"--prompt {options.prompt[0]!r}: this flow takes no text")
    if not options.prompt and generator.model.takes_text:
        raise ValueError("this flow draws what a text says: give --prompt")
    has_classes = options.class_labels or not options.prompt
    classes = generator.class_numbers(options.class_labels) if has_classes else []
    for name in names:
        if space == "point":
            _point_picture(options, generator, classes, name)
        else:
            subjects = subjects_in_turn(options.num_rows, classes, options.prompt or ())
            _image_pictures(options, generator, subjects, name)


def _point_picture(options: VisualizeOptions, generator, classes: list[int], name: str) -> None:
    """The velocity field over time, of one class or of none; or particles from noise to data."""
    import torch

    from wfimagevae.generate.generator import draw_states, sampling_velocity
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.flow_frames import background, field_frames, path_frames

    dataset = options.dataset or generator.facts.get("dataset")
    if dataset not in POINT_SETS:
        raise ValueError("the model does not say what points it learned: give --dataset")
    if name == "paths":
        subjects = subjects_in_turn(options.num_particles, classes)
        times, states = draw_states(generator, subjects, options)
        frames = path_frames(states, times.tolist(), background(dataset))
    else:
        if options.class_labels and len(classes) > 1:
            raise ValueError("a velocity field is that of one class: give --class_labels one class")
        shown = Subject(0, classes[0] if options.class_labels else None)

        def velocity(x, t):
            return sampling_velocity(generator, [shown] * len(x), options)(x, t)

        times = torch.linspace(0, 1, options.num_frames).tolist()
        frames = field_frames(velocity, times, background(dataset))
    path = Path(options.output_dir) / f"{name}.{options.format}"
    save_animation(path, list(frames))
    print(path)


def _image_pictures(options: VisualizeOptions, generator, subjects: list, name: str) -> None:
    """A row a sample, or a pair of noises that show the same: a grid and an animation."""
    import torch

    from wfimagevae.diffusion.sampler import SAMPLERS
    from wfimagevae.generate import generator as flow
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.grid import sample_grid, save_png

    if name == "denoising":  # the data that the network predicts from each state on the way
        times, states = flow.draw_states(generator, subjects, options)
        velocity = flow.sampling_velocity(generator, subjects, options)
        is_average = SAMPLERS[options.sampler].needs_average_velocity
        samples = flow.predicted_ends(velocity, times, states, is_average)
    else:
        samples = flow.interpolate(generator, subjects, options, options.num_columns)
    images = [generator.images(x.to(generator.device)).cpu() for x in samples]

    path = Path(options.output_dir) / f"{name}.png"
    last = min(options.num_columns, len(images)) - 1
    chosen = [round(i * (len(images) - 1) / last) for i in range(last + 1)]  # both ends among them
    titles = [f"t = {times[i].item():.2f}" for i in chosen] if name == "denoising" else None
    rows = [generator.title(subject) for subject in subjects]
    cells = torch.stack([images[i] for i in chosen], dim=1).flatten(0, 1)  # (rows * columns, ...)
    save_png(path, sample_grid(cells, len(chosen), rows if any(rows) else None, titles))
    print(path)

    path = path.with_suffix(f".{options.format}")
    width = max(1, round(options.num_rows**0.5))
    if name == "denoising":
        save_animation(path, [sample_grid(frame, width) for frame in images], fps=8)
    else:  # there and back again
        frames = [sample_grid(frame, width) for frame in [*images, *images[-2:0:-1]]]
        save_animation(path, frames, fps=6, hold_seconds=0)
    print(path)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
