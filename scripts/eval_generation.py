"""Compares generated images or points with a reference set.

python scripts/eval_generation.py --real_image_dir photos --generated_image_dir samples \
    --metric fid kid precision_recall energy_distance --output_json metrics.json
python scripts/eval_generation.py --from_pretrained results/flow --real_image_dir photos \
    --resolution 256 --sampler euler heun --steps 10 25 --guidance_scale 1.0 2.0
python scripts/eval_generation.py --from_pretrained results/toy --dataset five_gaussians
torchrun --nproc_per_node 8 scripts/eval_generation.py ...
"""

import itertools
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.engine.args import (
    Parser,
    add_device_arg,
    non_negative_int,
    output_file,
    positive_int,
)
from wfimagevae.engine.cli import run_cli
from wfimagevae.eval.generation_metric_args import (
    SET_METRICS,
    add_caption_args,
    add_reference_args,
    add_sampling_grid_args,
    add_set_metric_args,
)
from wfimagevae.generate.autoencoder_args import METRIC_UNAVAILABLE
from wfimagevae.generate.generation_args import (
    POINT_SETS,
    add_generator_args,
    check_guidance,
)

# Shapes that training does not draw, whatever its --num_shapes.
_FIRST_FRESH_SHAPE = 10**9


def build_parser() -> Parser:
    """The flags."""
    parser = Parser(
        description="Measure generated samples, from files or from a trained flow, against a "
        "reference set.",
        epilog=f"Exit status: 0 all measured; {METRIC_UNAVAILABLE} all but metrics whose weights "
        "are missing; 2 an error. torchrun turns each of 2 and 3 into 1.",
    )
    add_reference_args(parser)
    add_caption_args(parser)
    parser.add_argument(
        "--generated_image_dir",
        metavar="PATH",
        help="samples as they are, in place of --from_pretrained: a folder, a manifest, or an .npz",
    )
    add_generator_args(parser)
    parser.make_optional("from_pretrained")
    add_sampling_grid_args(parser)
    add_set_metric_args(parser)
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--batch_size", type=positive_int, default=64, metavar="N", help="samples at a time"
    )
    group.add_argument(
        "--num_workers", type=non_negative_int, default=2, metavar="N", help="reading processes"
    )
    add_device_arg(group)
    parser.add_argument(
        "--output_json",
        type=output_file,
        metavar="FILE",
        help="where to write figures and protocol",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = build_parser().parse_args(argv)
    check_guidance(args.negative_prompt, args.guidance_scale)
    if bool(args.generated_image_dir) == bool(args.from_pretrained):
        raise ValueError("give either --generated_image_dir or --from_pretrained")
    if bool(args.real_image_dir) == bool(args.dataset):
        raise ValueError("give either --real_image_dir or --dataset as the reference")

    from wfimagevae.engine.device import enable_fast_kernels
    from wfimagevae.engine.distributed import barrier, world

    with world(args.device) as here:
        enable_fast_kernels(here.device)
        candidates = list(_candidates(args, here.device))
        reference = _reference(args, len(candidates[0][1]))
        unavailable = _evaluate(args, here, reference, candidates)
        barrier()  # a process that leaves with a status makes torchrun stop the others
    return METRIC_UNAVAILABLE if unavailable else 0


def _evaluate(args: Namespace, here, reference, candidates: list) -> dict[str, str]:
    """Measures every candidate, reports after each, and returns the unavailable metrics."""
    from wfimagevae.eval.features import FeatureNetwork
    from wfimagevae.eval.generation_evaluator import GenerationEvaluator
    from wfimagevae.eval.generation_metrics import SetMetricOptions
    from wfimagevae.eval.generation_report import result_json, results_table
    from wfimagevae.files import write_json

    evaluator = GenerationEvaluator(
        _metrics(args, reference),
        here,
        FeatureNetwork(
            args.features, args.inception_weights, args.dinov2_repo, args.dinov2_weights
        ),
        SetMetricOptions(args.kid_subset_size, args.kid_num_subsets),
        args.energy_samples,
    )
    real = evaluator.collect(reference, args.batch_size, title="reference")
    results = []
    for sampling, samples in candidates:
        generated = evaluator.collect(samples, args.batch_size, title="generated", reference=real)
        values = evaluator.measure(real, generated)
        sampling = samples.description | sampling
        if args.from_pretrained:
            sampling["nfe"] = samples.nfe
        protocol = {"reference": reference.description} | evaluator.describe(real, generated)
        notes = evaluator.notes(real, generated)
        results.append(result_json(values, sampling, protocol, notes))
        if here.is_main and args.output_json:
            content = {"results": results, "unavailable": evaluator.unavailable}
            write_json(args.output_json, content)
    if here.is_main:
        print(results_table(results, evaluator.unavailable))
        if args.output_json:
            print(f"written: {Path(args.output_json)}")
    return evaluator.unavailable


def _metrics(args: Namespace, reference) -> Sequence[str]:
    if args.dataset not in POINT_SETS:
        return args.metric or SET_METRICS
    if set(args.metric or ()) - {"energy_distance"}:
        raise ValueError("points have no image features: of them, --metric energy_distance only")
    return ("energy_distance",)


def _reference(args: Namespace, num_generated: int):
    """The reference set that the flags name."""
    from wfimagevae.eval.sample_sets import DrawnSamples, open_images

    if args.real_image_dir:
        return open_images(
            args.real_image_dir,
            args.resolution,
            args.crop_size,
            args.subset_size,
            args.num_workers,
        )
    if args.dataset == "cifar10":
        from wfimagevae.dataset.toy.cifar10 import Cifar10Dataset

        if not args.data_path:
            raise ValueError("--dataset cifar10 needs --data_path, the folder that holds it")
        dataset = Cifar10Dataset(args.data_path, augment=False)
        return DrawnSamples(dataset, min(args.num_real or len(dataset), len(dataset)), "cifar10")
    count = args.num_real or num_generated
    if args.dataset == "shapes":
        from wfimagevae.dataset.toy.shapes import ShapesDataset

        dataset = ShapesDataset(
            args.resolution or 32, num_items=count, first_index=_FIRST_FRESH_SHAPE, augment=False
        )
        return DrawnSamples(dataset, count, f"shapes, {dataset.resolution} px")
    from wfimagevae.dataset.toy.points import PointDataset

    return DrawnSamples(PointDataset(args.dataset, split="test"), count, args.dataset)


def _candidates(args: Namespace, device):
    """(how they were sampled, samples) of every set to measure; checked, not yet drawn."""
    from wfimagevae.eval.sample_sets import GeneratedSamples, open_images

    if args.generated_image_dir:
        _check_no_captions(args, "files are compared as they are")
        yield {}, open_images(args.generated_image_dir, num_workers=args.num_workers)
        return

    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.generate.options import GeneratorOptions, SamplingOptions

    where = GeneratorOptions(
        **{name: getattr(args, name) for name in GeneratorOptions.model_fields}
    )
    generator = load_generator(where, device, args.mixed_precision)
    space = generator.facts["space"]
    if (space == "point") != (args.dataset in POINT_SETS):
        needed = f"one of {', '.join(POINT_SETS)}" if space == "point" else "a set of images"
        raise ValueError(
            f"{args.from_pretrained} generates {space}s: the reference must be {needed}"
        )
    shown = _shown(args, generator)
    source = {"checkpoint": args.from_pretrained, "raw_weights": args.use_raw_weights}
    if generator.model.takes_text:
        source["captions"] = {
            "source": args.dataset or args.captions,
            "prefix": args.fixed_prompt_prefix,
        }
    combinations = itertools.product(
        args.sampler or [None], args.steps or [None], args.guidance_scale
    )
    for sampler, steps, scale in combinations:
        values = {"sampler": sampler, "steps": steps, "guidance_scale": scale}
        shared = {name: getattr(args, name) for name in SamplingOptions.model_fields}
        options = generator.resolve(SamplingOptions(**shared | values))
        samples = GeneratedSamples(generator, options, args.num_images, args.label_sampling, shown)
        yield source | generator.describe(options), samples


def _check_no_captions(args: Namespace, why: str) -> None:
    """Raises ValueError for flags of captions that would do nothing."""
    if args.captions != "none":
        raise ValueError(f"--captions {args.captions}: {why}")
    if args.fixed_prompt_prefix:
        raise ValueError(f"--fixed_prompt_prefix {args.fixed_prompt_prefix!r}: {why}")


def _shown(args: Namespace, generator) -> list:
    """What a flow that takes text draws: the reference's captions, of shapes with the class."""
    from wfimagevae.dataset import Captions, ShapesDataset
    from wfimagevae.dataset.text.captions import with_prefix
    from wfimagevae.dataset.toy.shapes import COLOURS, SHAPES
    from wfimagevae.eval.sample_sets import FolderImages
    from wfimagevae.generate.subjects import Subject

    if not generator.model.takes_text:
        _check_no_captions(args, "this flow takes no text")
        return []
    if args.dataset == "shapes":
        if args.captions != "none":
            raise ValueError(f"--captions {args.captions}: --dataset shapes has its own")
        data, prefix = ShapesDataset(), args.fixed_prompt_prefix
        has_classes = generator.facts.get("class_names") == data.class_names
        return [
            Subject(0, data.label(i) if has_classes else None, with_prefix(prefix, data.caption(i)))
            for i in range(len(SHAPES) * len(COLOURS))
        ]
    reference = _reference(args, 1)
    if args.captions == "none" or not isinstance(reference, FolderImages):
        raise ValueError(
            "this flow draws what a text says: give a folder or manifest as --real_image_dir, with "
            "--captions, or --dataset shapes; their captions are the prompts"
        )
    prompts = reference.prompts(Captions(args.captions, args.fixed_prompt_prefix))
    return [Subject(0, prompt=prompt) for prompt in prompts]


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
