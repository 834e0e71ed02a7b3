"""Measures generated samples, from files or from a trained flow, against a reference set.

python scripts/eval_generation.py --real_image_dir photos --generated_image_dir samples \
    --metric fid kid precision_recall energy_distance --output_json metrics.json
python scripts/eval_generation.py --from_pretrained results/flow --real_image_dir photos \
    --resolution 256 --sampler euler heun --steps 10 25 --guidance_scale 1.0 2.0
python scripts/eval_generation.py --from_pretrained results/toy --dataset five_gaussians
torchrun --nproc_per_node 8 scripts/eval_generation.py ...
"""

from collections.abc import Iterator
from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.eval.options import (
    EXIT_STATUS,
    METRIC_UNAVAILABLE,
    CaptionOptions,
    GenerationOptions,
    ReferenceOptions,
    SamplingGridOptions,
    SetMetricOptions,
)
from wfimagevae.generate.options import (
    POINT_SETS,
    FlowComputeOptions,
    GeneratorOptions,
    UpsamplerOptions,
)
from wfimagevae.options import OutputFile, new_defaults, option


@new_defaults(from_pretrained=None)
class EvaluationOptions(
    ReferenceOptions,
    CaptionOptions,
    GeneratorOptions,
    UpsamplerOptions,
    SamplingGridOptions,
    GenerationOptions,
    SetMetricOptions,
    FlowComputeOptions,
):
    """files"""

    generated_image_dir: str | None = option(
        None,
        "samples, in place of --from_pretrained: a folder, a manifest, or an .npz as it is",
        "PATH",
    )
    output_json: OutputFile | None = option(None, "where to write figures and protocol", "FILE")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(EvaluationOptions, argv, f"{__doc__}\n{EXIT_STATUS}")
    if bool(options.generated_image_dir) == bool(options.from_pretrained):
        raise ValueError("give either --generated_image_dir or --from_pretrained")
    if bool(options.real_image_dir) == bool(options.dataset):
        raise ValueError("give either --real_image_dir or --dataset as the reference")
    if options.dataset in POINT_SETS:
        if set(options.metric or ()) - {"energy_distance"}:
            raise ValueError("points have no image features: --metric energy_distance only")
        options = options.changed(metric=["energy_distance"])

    from wfimagevae.engine.distributed import world
    from wfimagevae.eval.evaluator import SetEvaluator
    from wfimagevae.eval.report import protocol_hash, sets_table
    from wfimagevae.eval.sample_sets import open_reference
    from wfimagevae.files import write_json

    with world(options.device) as here:
        # All are opened and checked before any is drawn.
        candidates = list(_candidates(options, here.device))
        if "clip_score" in (options.metric or ()) and not candidates[0].captions:
            raise ValueError(
                "--metric clip_score compares images with texts: give a flow that takes text, or "
                "--generated_image_dir, a folder or manifest, with --captions"
            )
        reference = open_reference(options, len(candidates[0]), options.num_workers)
        evaluator = SetEvaluator(options, here, reference, options.batch_size)
        results = []
        for samples in candidates:
            values, notes, protocol = evaluator.measure(samples)
            if options.from_pretrained:
                samples.description["nfe"] = samples.nfe
            protocol = {"reference": reference.description} | protocol
            how = {"sampling": samples.description, "notes": notes, "protocol": protocol}
            results.append({**values, **how, "protocol_hash": protocol_hash(protocol)})
            if here.is_main and options.output_json:
                missing = {name: getattr(evaluator, name) for name in ("unavailable", "unreadable")}
                write_json(options.output_json, {"results": results} | missing)
        if here.is_main:
            print(sets_table(results, evaluator.unavailable))
            if options.output_json:
                print(f"written: {Path(options.output_json)}")
    return METRIC_UNAVAILABLE if evaluator.unavailable else int(bool(evaluator.unreadable))


def _candidates(options: EvaluationOptions, device) -> Iterator:
    """The `SampleSet`s to measure, which say how they are sampled; checked, not yet drawn."""
    from wfimagevae.dataset import Captions
    from wfimagevae.eval.sample_sets import GeneratedSamples, open_images
    from wfimagevae.generate.generator_files import load_generator

    if options.generated_image_dir:
        path, sizes = options.generated_image_dir, (options.resolution, options.crop_size)
        if Path(path).suffix == ".npz":
            sizes = ()
        needs_captions = sizes and "clip_score" in (options.metric or ())
        if not needs_captions:
            _check_no_captions(options, "files are compared as they are")
        samples = open_images(path, *sizes, num_workers=options.num_workers)
        if needs_captions and options.captions != "none":
            captions = Captions(options.captions, options.fixed_prompt_prefix)
            samples.captions = samples.prompts(captions)
            if "" in samples.captions:
                raise ValueError(f"--captions {options.captions}: some images have none")
        yield samples
        return
    generator = load_generator(options, device, options.mixed_precision)
    space = generator.facts["space"]
    if (space == "point") != (options.dataset in POINT_SETS):
        fitting = f"one of {', '.join(POINT_SETS)}" if space == "point" else "a set of images"
        raise ValueError(f"this flow generates {space}s: the reference must be {fitting}")
    wanted = options.num_images, options.label_sampling, _subjects(options, generator)
    source = {"checkpoint": options.from_pretrained, "raw_weights": options.use_raw_weights}
    if generator.model.takes_text:
        source["captions"] = {
            "source": options.dataset or options.captions,
            "prefix": options.fixed_prompt_prefix,
        }
    for row in options.combinations():
        samples = GeneratedSamples(generator, row, *wanted)
        samples.description |= source | generator.describe(samples.options)
        yield samples


def _check_no_captions(options: CaptionOptions, reason: str) -> None:
    """Raises ValueError for flags of captions that would do nothing."""
    for name, idle in (("captions", "none"), ("fixed_prompt_prefix", "")):
        value = getattr(options, name)
        if value != idle:
            raise ValueError(f"--{name} {value}: {reason}")


def _subjects(options: EvaluationOptions, generator) -> list:
    """What a flow that takes text draws: the reference's captions, of shapes with the class."""
    from wfimagevae.dataset import Captions, ShapesDataset
    from wfimagevae.dataset.text.captions import with_prefix
    from wfimagevae.dataset.toy.shapes import COLOURS, SHAPES
    from wfimagevae.eval.sample_sets import FolderImages, open_reference
    from wfimagevae.generate.subjects import Subject

    if not generator.model.takes_text:
        _check_no_captions(options, "this flow takes no text")
        return []
    if options.dataset == "shapes":
        if options.captions != "none":
            raise ValueError(f"--captions {options.captions}: --dataset shapes has its own")
        data, prefix = ShapesDataset(), options.fixed_prompt_prefix
        has_classes = generator.facts.get("class_names") == data.class_names
        return [
            Subject(0, data.label(i) if has_classes else None, with_prefix(prefix, data.caption(i)))
            for i in range(len(SHAPES) * len(COLOURS))
        ]
    reference = open_reference(options, 1)
    if options.captions == "none" or not isinstance(reference, FolderImages):
        raise ValueError(
            "this flow draws what a text says: give a folder or manifest as --real_image_dir, with "
            "--captions, or --dataset shapes; their captions are the prompts"
        )
    prompts = reference.prompts(Captions(options.captions, options.fixed_prompt_prefix))
    return [Subject(0, prompt=prompt) for prompt in prompts if prompt]


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
