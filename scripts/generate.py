"""Generates images with a trained flow.

python scripts/generate.py --from_pretrained results/flow --output_dir samples --num_images 16
python scripts/generate.py --from_pretrained results/text --output_dir samples \
    --prompt "a red circle" "a blue star" --guidance_scale 1 2 4 --negative_prompt "a ring"
python scripts/generate.py --from_pretrained results/text --output_dir samples \
    --prompts_path prompts --num_images 4 --height 256 --width 384 --guidance_scale 4
python scripts/generate.py --from_json samples/a-red-circle-w2.json --output_dir again
python scripts/generate.py --from_pretrained SiT-XL-2-256.pt --model_name DiT-XL/2 \
    --vae diffusers:stabilityai/sd-vae-ft-ema --class_labels 207 360 --guidance_scale 4
torchrun --nproc_per_node 8 scripts/generate.py ... --num_images 50000 --npz samples.npz
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import Parser, output_file, positive_int
from wfimagevae.engine.cli import run_cli
from wfimagevae.generate.autoencoder_args import add_compute_args
from wfimagevae.generate.generation_args import (
    add_generator_args,
    add_sampling_args,
    check_guidance,
    prompt_text,
    sampling_values,
)

# What goes with --from_json: where from, where to, and where to compute.
_WITH_JSON = {"from_json", "from_pretrained", "vae", "text_encoder", "output_dir", "device"}
_DEFAULT_COUNT = 16


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Generate images with a trained flow; each depends on its prompt or class, its "
        "number and the seed alone, whatever the batch size or the number of processes."
    )
    add_generator_args(parser)
    parser.make_optional("from_pretrained")
    add_sampling_args(parser)
    scale = parser.flags()["guidance_scale"]
    scale.nargs = "+"
    scale.help += "; of several, each is a column of the grid, from the same noise"
    parser.set_defaults(guidance_scale=[1.0])
    _add_subject_args(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir",
        metavar="DIR",
        help="folder for one PNG an image, with a JSON of the same name that --from_json takes, a "
        "grid, and samples.json. Pictures of prompts never replace a file: a name that is taken "
        "gets a number behind it",
    )
    group.add_argument(
        "--npz",
        type=output_file,
        metavar="FILE",
        help="write all images to one file instead, as public FID code reads them: arr_0, uint8 "
        "(N, H, W, 3)",
    )
    group.add_argument(
        "--from_json",
        metavar="FILE",
        help="make the very picture again that this JSON lies beside; --from_pretrained, --vae and "
        "--text_encoder say where the models are now, if they were moved",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=16, metavar="N", help="images at a time"
    )
    add_compute_args(parser, "the flow; an autoencoder decodes in fp32")
    return parser


def _add_subject_args(parser: Parser) -> None:
    group = parser.add_argument_group("what to draw")
    group.add_argument(
        "--prompt",
        type=prompt_text,
        nargs="+",
        action="extend",
        metavar="TEXT",
        help='one or several; may come again; "" draws without',
    )
    group.add_argument(
        "--prompts_path",
        metavar="PATH",
        help="folder of .txt files, one prompt each, whose pictures get their names; or one file "
        "with a prompt a line. A file without text is an error",
    )
    group.add_argument(
        "--num_images",
        type=positive_int,
        metavar="N",
        help="with prompts: images of each, at each guidance scale (default: 1), and image i of "
        "every prompt starts from the same noise; without: images over all processes "
        f"(default: {_DEFAULT_COUNT})",
    )
    group.add_argument(
        "--class_labels",
        nargs="+",
        metavar="CLASS",
        help="numbers or names, taken in turn; if not given: all classes in turn, beside prompts "
        "none (a flow that learned classes and captions together draws best with both)",
    )
    group.add_argument(
        "--height",
        type=positive_int,
        metavar="PX",
        help="of the images, for models with position 'rope' (default: the model's own)",
    )
    group.add_argument("--width", type=positive_int, metavar="PX", help="likewise")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.from_json:
        _check_alone(args, parser)
    elif not args.from_pretrained:
        raise ValueError("give --from_pretrained, or --from_json")
    if bool(args.output_dir) == bool(args.npz):
        raise ValueError("give either --output_dir or --npz")
    if args.from_json and args.npz:
        raise ValueError("--from_json makes one picture: give --output_dir")
    check_guidance(args.negative_prompt, args.guidance_scale)

    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import world

    with world(args.device) as here:
        enable_fast_kernels(here.device)
        done = _draw_again(args, here) if args.from_json else _draw(args, here)
        if here.is_main:
            print(done)


def _draw(args: Namespace, here) -> str:
    """Draws what the flags say; a line about it."""
    from wfimagevae.generate.generated_files import write_folder, write_npz
    from wfimagevae.generate.generator_files import load_generator, sampling_options

    generator = load_generator(
        args.from_pretrained,
        here.device,
        args.model_name,
        args.vae,
        args.use_raw_weights,
        args.text_encoder,
    )
    if generator.facts["space"] == "point":
        raise ValueError("this flow makes points: see them with scripts/visualize_flow.py")
    size = generator.sample_size(args.height, args.width)
    values = sampling_values(args)
    for scale in args.guidance_scale:  # all of them are checked before the first is drawn
        options = sampling_options(generator, **values | {"guidance_scale": scale, "size": size})
    sheet = _sheet(args, generator)
    write = write_folder if args.output_dir else write_npz
    target = args.output_dir or args.npz
    write(Path(target), generator, sheet, options, args.batch_size, here)
    return f"{target}: {sheet.count} images, {options.sampler}, {options.steps} steps"


def _sheet(args: Namespace, generator):
    """The pictures to draw."""
    from wfimagevae.generate.generated_files import class_sheet, prompt_sheet
    from wfimagevae.generate.generator import class_numbers
    from wfimagevae.generate.prompts import given_prompts, read_prompts
    from wfimagevae.generate.subjects import subjects_in_turn

    prompts = given_prompts(args.prompt or ())
    prompts += read_prompts(args.prompts_path) if args.prompts_path else []
    takes_text = generator.model.takes_text
    if prompts and not takes_text:
        raise ValueError(f"prompt {prompts[0].text!r} asked of a flow that takes no text")
    if not prompts and takes_text and not generator.model.num_classes:
        raise ValueError(
            'this flow draws what a text says: give --prompt or --prompts_path (--prompt "" draws '
            "without)"
        )
    if not prompts:
        classes = class_numbers(generator, args.class_labels)
        subjects = subjects_in_turn(args.num_images or _DEFAULT_COUNT, classes)
        return class_sheet(generator, subjects, args.guidance_scale)
    classes = class_numbers(generator, args.class_labels) if args.class_labels else []
    return prompt_sheet(prompts, classes, args.num_images or 1, args.guidance_scale)


def _draw_again(args: Namespace, here) -> str:
    """Draws the picture of a record; a line about it."""
    from wfimagevae.generate.generated_files import write_again
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.picture_record import read_picture_record

    record = read_picture_record(args.from_json)
    model = record["model"]
    others = {"vae": args.vae, "text_encoder": args.text_encoder}
    if not args.from_pretrained:  # a model that was moved knows where its parts are now
        others = {name: given or model[name] for name, given in others.items()}
    generator = load_generator(
        args.from_pretrained or model["path"],
        here.device,
        model["model_name"],
        use_raw_weights=model["raw_weights"],
        **others,
    )
    path = write_again(Path(args.output_dir), generator, record, Path(args.from_json).stem, here)
    return f"{path}: as {args.from_json} says"


def _check_alone(args: Namespace, parser: Parser) -> None:
    """Raises ValueError for flags whose values the JSON brings."""
    given = [
        name
        for name, value in vars(args).items()
        if name not in _WITH_JSON and value != parser.get_default(name)
    ]
    if given:
        raise ValueError(
            f"--from_json brings all that decides the picture: leave out --{', --'.join(given)}"
        )


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
