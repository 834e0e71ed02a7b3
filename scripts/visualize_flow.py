"""Pictures of a trained flow at work, as animations and grids.

python scripts/visualize_flow.py --from_pretrained results/toy --output_dir pictures
python scripts/visualize_flow.py --from_pretrained results/flow --output_dir pictures \
    --class_labels circle star --num_rows 4 --guidance_scale 2

Of points: the velocity field over time and the paths of particles. Of images: what the network
predicts on the way from noise to data, and what lies between two noises of one class.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import add_compute_args
from wfimagevae.generate.generation_args import (
    POINT_SETS,
    add_generator_args,
    add_sampling_args,
    check_guidance,
    prompt_text,
    sampling_values,
)

_OF_POINTS, _OF_IMAGES = ("field", "paths"), ("denoising", "interpolation")
_NUM_DATA = 2000


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Picture a trained flow: fields and paths of points, denoising "
        "and interpolations of images."
    )
    add_generator_args(parser)
    add_sampling_args(parser)
    group = parser.add_argument_group("pictures")
    group.add_argument("--output_dir", required=True, metavar="DIR", help="where pictures go")
    group.add_argument(
        "--pictures",
        nargs="+",
        choices=(*_OF_POINTS, *_OF_IMAGES),
        help="not given: field and paths of points, denoising and interpolation of images",
    )
    group.add_argument(
        "--format",
        choices=("gif", "mp4"),
        default="gif",
        help="of animations; mp4 needs ffmpeg, or pip install imageio-ffmpeg",
    )
    group.add_argument(
        "--class_labels",
        nargs="+",
        metavar="CLASS",
        help="numbers or names, taken in turn; not given: all classes, for the field none",
    )
    group.add_argument(
        "--prompt",
        type=prompt_text,
        nargs="+",
        metavar="TEXT",
        help="what a flow that takes text shows, in turn",
    )
    group.add_argument(
        "--num_frames", type=positive_int, default=40, metavar="N", help="frames of the field"
    )
    group.add_argument(
        "--num_particles", type=positive_int, default=300, metavar="N", help="particles on paths"
    )
    group.add_argument(
        "--num_rows", type=positive_int, default=8, metavar="N", help="images, or pairs of noises"
    )
    group.add_argument(
        "--num_columns",
        type=positive_int,
        default=9,
        metavar="N",
        help="pictures in a row, at least 2",
    )
    group.add_argument(
        "--dataset",
        choices=POINT_SETS,
        help="points shown in grey; not given: those that the model was trained on",
    )
    add_compute_args(parser, "the flow; an autoencoder decodes in fp32")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)
    check_guidance(args.negative_prompt, [args.guidance_scale])
    if args.num_columns < 2:
        raise ValueError(
            f"--num_columns {args.num_columns}: a row leads from a first to a last picture; give "
            "at least 2"
        )

    from wfimagevae.engine.device import enable_fast_kernels, resolve_device
    from wfimagevae.generate.generator import class_numbers
    from wfimagevae.generate.generator_files import load_generator, sampling_options
    from wfimagevae.pictures.animation import check_animation_path

    check_animation_path(f"any.{args.format}")
    device = resolve_device(args.device)
    enable_fast_kernels(device)
    generator = load_generator(
        args.from_pretrained,
        device,
        args.model_name,
        args.vae,
        args.use_raw_weights,
        args.text_encoder,
    )
    space = generator.facts["space"]
    possible = _OF_POINTS if space == "point" else _OF_IMAGES
    wanted = args.pictures or possible
    if impossible := [name for name in wanted if name not in possible]:
        raise ValueError(f"no {impossible[0]} of a flow of {space}s; choose {', '.join(possible)}")
    options = sampling_options(generator, **sampling_values(args))
    if args.prompt and not generator.model.takes_text:
        raise ValueError(f"--prompt {args.prompt[0]!r}: this flow takes no text")
    if not args.prompt and generator.model.takes_text:
        raise ValueError("this flow draws what a text says: give --prompt")
    has_classes = args.class_labels or not args.prompt
    classes = class_numbers(generator, args.class_labels) if has_classes else []
    draw = {"field": _field, "paths": _paths}
    draw |= {"denoising": _denoising, "interpolation": _interpolation}
    for name in wanted:
        for path in draw[name](args, generator, options, classes):
            print(path)


def _field(args: Namespace, generator, options, classes: list[int]):
    """The velocity field over time, of one class or of none."""
    import torch

    from wfimagevae.generate.flow_paths import field_velocity
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.flow_frames import field_frames

    if args.class_labels and len(classes) > 1:
        raise ValueError("a velocity field is that of one class: give --class_labels one class")
    velocity = field_velocity(generator, classes[0] if args.class_labels else None, options)
    times = torch.linspace(0, 1, args.num_frames).tolist()
    path = Path(args.output_dir) / f"field.{args.format}"
    save_animation(path, list(field_frames(velocity, times, _plane(args, generator))))
    yield path


def _paths(args: Namespace, generator, options, classes: list[int]):
    """Particles from noise to data."""
    from wfimagevae.generate.flow_paths import draw_states
    from wfimagevae.generate.subjects import subjects_in_turn
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.flow_frames import path_frames

    times, states, _ = draw_states(
        generator, subjects_in_turn(args.num_particles, classes), options
    )
    path = Path(args.output_dir) / f"paths.{args.format}"
    save_animation(path, list(path_frames(states, times.tolist(), _plane(args, generator))))
    yield path


def _plane(args: Namespace, generator):
    from wfimagevae.dataset.toy.points import PointDataset
    from wfimagevae.pictures.flow_frames import Plane

    name = args.dataset or generator.facts.get("dataset")
    if name not in POINT_SETS:
        raise ValueError("the model does not say what points it learned: give --dataset")
    points = PointDataset(name, split="test").read_batch(list(range(_NUM_DATA)))["point"]
    return Plane(points)


def _denoising(args: Namespace, generator, options, classes: list[int]):
    """A row a sample: the data that the network predicts from each state on the way."""
    from wfimagevae.diffusion.sampler import get_sampler
    from wfimagevae.generate.flow_paths import draw_states, predicted_ends
    from wfimagevae.generate.subjects import subjects_in_turn
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.flow_frames import evenly
    from wfimagevae.pictures.grid import sample_grid, save_grid

    subjects = subjects_in_turn(args.num_rows, classes, args.prompt or ())
    times, states, velocity = draw_states(generator, subjects, options)
    is_average = get_sampler(options.sampler).needs_average_velocity
    ends = predicted_ends(velocity, times, states, is_average)
    images = [generator.images(x.to(generator.device)).cpu() for x in ends]
    columns = [f"t = {t:.2f}" for t in times.tolist()]
    names = _row_names(generator, subjects)
    chosen = evenly(len(images), args.num_columns)
    path = Path(args.output_dir) / "denoising.png"
    _save_columns(save_grid, path, [images[i] for i in chosen], names, [columns[i] for i in chosen])
    yield path
    path = Path(args.output_dir) / f"denoising.{args.format}"
    wide = max(1, round(args.num_rows**0.5))
    save_animation(path, [sample_grid(frame, wide) for frame in images], fps=8)
    yield path


def _interpolation(args: Namespace, generator, options, classes: list[int]):
    """A row a pair of noises of one class: the samples of noises between them."""
    from wfimagevae.generate.flow_paths import interpolate
    from wfimagevae.generate.subjects import subjects_in_turn
    from wfimagevae.pictures.animation import save_animation
    from wfimagevae.pictures.grid import sample_grid, save_grid

    subjects = subjects_in_turn(args.num_rows, classes, args.prompt or ())
    samples = interpolate(generator, subjects, options, args.num_columns)
    images = [generator.images(x.to(generator.device)).cpu() for x in samples]
    path = Path(args.output_dir) / "interpolation.png"
    _save_columns(save_grid, path, images, _row_names(generator, subjects))
    yield path
    path = Path(args.output_dir) / f"interpolation.{args.format}"
    wide = max(1, round(args.num_rows**0.5))
    there_and_back = [*images, *images[-2:0:-1]]
    save_animation(path, [sample_grid(frame, wide) for frame in there_and_back], 6, 0)
    yield path


def _save_columns(save_grid, path: Path, columns: list, names, titles=None) -> None:
    import torch

    images = torch.stack(columns, dim=1).flatten(0, 1)  # (rows * columns, 3, H, W)
    save_grid(path, images, len(columns), names, titles)


def _row_names(generator, subjects: list) -> list[str] | None:
    names = [generator.title(subject) for subject in subjects]
    return names if any(names) else None


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
