"""Generates images with a trained flow; each depends on its prompt or class and the seed alone.

python scripts/generate.py --from_pretrained results/flow --output_dir samples --num_images 16
python scripts/generate.py --from_pretrained results/text --output_dir samples \
    --prompt "a red circle" "a blue star" --guidance_scale 1 2 4 --negative_prompt "a ring"
python scripts/generate.py --from_pretrained results/text --output_dir samples \
    --prompts_path prompts --num_images 4 --height 256 --width 384 --guidance_scale 4
python scripts/generate.py --from_json samples/a-red-circle-w2.png --output_dir again
python scripts/generate.py --from_pretrained SiT-XL-2-256.pt --model_name DiT-XL/2 \
    --vae diffusers:stabilityai/sd-vae-ft-ema --class_labels 207 360 --guidance_scale 4
python scripts/generate.py --from_pretrained base.pt --model_name GLIDE-base \
    --upsampler upsample.pt --prompt "an oil painting of a corgi" --guidance_scale 4 \
    --output_dir samples
torchrun --nproc_per_node 8 scripts/generate.py ... --num_images 50000 --npz samples.npz
"""

import contextlib
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from wfimagevae.command_line import parse, run_cli
from wfimagevae.generate.options import (
    FlowComputeOptions,
    GeneratorOptions,
    SamplingOptions,
    UpsamplerOptions,
)
from wfimagevae.options import Count, NonNegative, Options, OutputFile, Prompt, new_defaults, option

# What goes with --from_json: where from, where to, and where to compute.
_WITH_JSON = {"from_json", "from_pretrained", "vae", "text_encoder", "output_dir", "device"}
_WITH_JSON |= {"upsampler", "offload"}
_DEFAULT_COUNT = 16


class ScaleOptions(SamplingOptions):
    """sampling"""

    guidance_scale: list[NonNegative] = option(
        [1.0],
        f"{SamplingOptions.model_fields['guidance_scale'].description}; of several, each is a "
        "column of the grid, from the same noise",
        "W",
    )


class SubjectOptions(Options):
    """what to draw"""

    prompt: list[Prompt] | None = option(
        None, 'one or several; may come again; "" draws without', "TEXT", repeat="several"
    )
    prompts_path: str | None = option(
        None,
        "folder of .txt files, one prompt each, whose pictures get their names; or one file "
        "with a prompt a line. A file without text is an error",
        "PATH",
    )
    num_images: Count | None = option(
        None,
        "with prompts: images of each, at each guidance scale (default: 1), and image i of "
        "every prompt starts from the same noise; without: images over all processes "
        f"(default: {_DEFAULT_COUNT})",
        "N",
    )
    class_labels: list[str] | None = option(
        None,
        "numbers or names, taken in turn; if not given: all classes in turn, beside prompts "
        "none (a flow that learned classes and captions together draws best with both)",
        "CLASS",
    )
    height: Count | None = option(
        None, "of the images, for models with position 'rope' (default: the model's own)", "PX"
    )
    width: Count | None = option(None, "likewise", "PX")


class InpaintOptions(Options):
    """inpainting, by models that learned it"""

    task: Literal["generate", "inpaint"] = option(
        "generate", "inpaint: draw what is missing of an image"
    )
    inpaint_image: str | None = option(None, "whose middle square is filled in", "FILE")
    inpaint_mask: str | None = option(
        None, "an image of its size, white where something is to be drawn", "FILE"
    )

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if {bool(self.inpaint_image), bool(self.inpaint_mask)} != {self.task == "inpaint"}:
            raise ValueError("--task inpaint goes with both --inpaint_image and --inpaint_mask")
        return self


class OutputOptions(Options):
    """output"""

    output_dir: str | None = option(
        None,
        "folder for one PNG an image and nothing else; a grid, and of each image a JSON that "
        "--from_json takes, go to DIR-records. Pictures of prompts never replace a file: a name "
        "that is taken gets a number behind it",
        "DIR",
    )
    npz: OutputFile | None = option(
        None,
        "write all images to one file instead, as public FID code reads them: arr_0, uint8 "
        "(N, H, W, 3)",
        "FILE",
    )
    from_json: str | None = option(
        None,
        "make the very picture again whose record this JSON is (or the record of this PNG); "
        "--from_pretrained, --vae and --text_encoder say where the models are now, if they were "
        "moved",
        "FILE",
    )
    batch_size: Count = option(16, "images at a time", "N")


@new_defaults(from_pretrained=None)
class GenerateOptions(
    GeneratorOptions,
    UpsamplerOptions,
    ScaleOptions,
    SubjectOptions,
    InpaintOptions,
    OutputOptions,
    FlowComputeOptions,
):
    """All flags of this command."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    options = parse(GenerateOptions, argv, __doc__)
    if options.from_json:
        if extra := sorted(options.model_fields_set - _WITH_JSON):
            raise ValueError(
                f"--from_json brings all that decides the picture: leave out --{', --'.join(extra)}"
            )
    elif not options.from_pretrained:
        raise ValueError("give --from_pretrained, or --from_json")
    if bool(options.output_dir) == bool(options.npz):
        raise ValueError("give either --output_dir or --npz")

    from wfimagevae.engine.distributed import world
    from wfimagevae.files import sole_writer

    with world(options.device) as processes, contextlib.ExitStack() as stack:
        if options.output_dir:
            stack.enter_context(sole_writer(Path(options.output_dir), processes.is_main))
        report = (_draw_again if options.from_json else _draw)(options, processes)
        if processes.is_main:
            print(report)


def _draw(options: GenerateOptions, world) -> str:
    """Draws what the flags say; a line about it."""
    from wfimagevae.generate.generated_files import Sheet, class_stems, write_folder, write_npz
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.inpainting import fill_in
    from wfimagevae.generate.subjects import (
        Prompt,
        prompt_subjects,
        read_prompts,
        slug,
        subjects_in_turn,
    )

    generator = load_generator(options, world.device, options.mixed_precision)
    if options.task == "inpaint":
        if options.height or options.width:
            raise ValueError("--height and --width: --inpaint_image has its size, leave them out")
        fill_in(generator, options.inpaint_image, options.inpaint_mask)
    if generator.facts["space"] == "point":
        raise ValueError("this flow makes points: see them with scripts/visualize_flow.py")
    size = generator.sample_size(options.height, options.width)
    # All guidance scales are checked before the first is drawn.
    scales = options.guidance_scale
    columns = [generator.resolve(options.changed(guidance_scale=scale)) for scale in scales]

    prompts = [Prompt(text, slug(text)) for text in options.prompt or ()]
    prompts += read_prompts(options.prompts_path) if options.prompts_path else []
    takes_text, count = generator.model.takes_text, options.num_images
    if not prompts and takes_text and not generator.model.num_classes:
        raise ValueError(
            'this flow draws what a text says: give --prompt or --prompts_path (--prompt "" draws '
            "without)"
        )
    has_classes = options.class_labels or not prompts
    classes = generator.class_numbers(options.class_labels) if has_classes else []
    if prompts:
        subjects = prompt_subjects([prompt.text for prompt in prompts], count or 1, classes)
        stems = [prompt.stem for prompt in prompts for _ in range(count or 1)]
    else:
        subjects = subjects_in_turn(count or _DEFAULT_COUNT, classes)
        stems = class_stems(generator, subjects)
    sheet = Sheet(subjects, stems, columns, size)
    target = options.output_dir or options.npz
    write = write_folder if options.output_dir else write_npz
    write(Path(target), generator, sheet, options.batch_size, world)
    return f"{target}: {sheet.count} images, {columns[0].sampler}, {columns[0].steps} steps"


def _draw_again(options: GenerateOptions, world) -> str:
    """Draws the picture of a record, which takes one process; a line about it."""
    from wfimagevae.generate.generated_files import read_picture_record, write_again
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.inpainting import fill_in

    record = read_picture_record(options.from_json)
    if not world.is_main:
        return ""
    model = record["model"]
    parts = {"vae": options.vae, "text_encoder": options.text_encoder}
    if not options.from_pretrained:  # a model that was moved knows where its parts are now
        parts = {name: place or model[name] for name, place in parts.items()}
    source = GenerateOptions(
        from_pretrained=options.from_pretrained or model["path"],
        model_name=model["model_name"],
        use_raw_weights=model["raw_weights"],
        **parts,
        **record.get("second_stage", {}),
        upsampler=options.upsampler or model.get("upsampler"),
        offload=options.offload,
    )
    generator = load_generator(source, world.device, record["precision"])
    if "inpaint_mask" in model:
        fill_in(generator, model["inpaint_image"], model["inpaint_mask"])
    name = Path(options.from_json).stem
    path = write_again(Path(options.output_dir), generator, record, name)
    return f"{path}: as {options.from_json} says"


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
