"""Draws what prompts say with any generator that reads text, scores it by CLIP and keeps the best.

python scripts/evaluate_prompts.py --from_pretrained results/text --output_dir evaluation \
    --prompts_path examples/prompts.txt --sampler euler heun --steps 10 25 --guidance_scale 2 4
python scripts/evaluate_prompts.py --from_pretrained results/text --output_dir evaluation \
    --prompts "a red circle|a blue star" --use_clip_rerank --clip_model ViT-L-14/laion2b_s32b_b82k
torchrun --nproc_per_node 8 scripts/evaluate_prompts.py ... --resume
"""

from pathlib import Path
from typing import Literal

from wfimagevae.command_line import parse, run_cli
from wfimagevae.engine.options import TRACKER, TrackerKind
from wfimagevae.eval.options import (
    EXIT_STATUS,
    METRIC_UNAVAILABLE,
    ReferenceMetric,
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
from wfimagevae.generate.subjects import read_prompts
from wfimagevae.options import Count, Options, Prompt, option


class PromptOptions(Options):
    """what to draw"""

    prompts: Prompt | None = option(None, "with | between them", "A|B")
    prompts_path: str | None = option(
        None, "instead: a file with a prompt a line, or a folder of .txt files", "PATH"
    )
    num_images: Count = option(1, "of each prompt, without re-ranking", "N")


class RankOptions(SetMetricOptions):
    """re-ranking"""

    clip_model: str = option(
        "ViT-L-14",
        "what scores and ranks: an architecture of open_clip, alone or with public weights or a "
        "file, such as ViT-L-14/laion2b_s32b_b82k or ViT-L-14/FILE; or clip: and a folder or hub "
        "name of a CLIPModel of transformers; or none",
        "MODEL",
    )
    use_clip_rerank: bool = option(False, "draw candidates and keep those that CLIP likes best")
    clip_candidates: Count = option(32, "candidates of each prompt", "N")
    clip_top_k: Count = option(8, "and how many of them are kept", "N")
    metric: list[ReferenceMetric] | None = option(
        None, "of the images that are kept, against the reference; not given: all, if there is one"
    )


class OutputOptions(Options):
    """output"""

    output_dir: str = option(
        ...,
        "folder for prompt_000/image_rank_001.png, ... with a metadata.json of seeds and scores; "
        "where several samplers, steps or scales are given, in a folder of each; contact sheets",
        "DIR",
    )
    output_format: Literal["png", "jpg"] = option("png", "of the images; jpg has quality 95")
    batch_size: Count = option(16, "images drawn, and scored, at a time; of several prompts", "N")
    resume: bool = option(False, "go on in --output_dir: what is done there is not drawn again")
    dry_run: bool = option(False, "load and check everything, say what would be drawn, and end")
    tracker: TrackerKind = TRACKER


class PromptEvaluationOptions(
    GeneratorOptions,
    UpsamplerOptions,
    PromptOptions,
    SamplingGridOptions,
    RankOptions,
    ReferenceOptions,
    OutputOptions,
    FlowComputeOptions,
):
    """All flags of this command."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(PromptEvaluationOptions, argv, f"{__doc__}\n{EXIT_STATUS}")
    prompts, has_reference = _check(options)

    from wfimagevae.engine.distributed import barrier, gather_objects, world
    from wfimagevae.engine.report.tracker import open_tracker
    from wfimagevae.eval.evaluator import SetEvaluator
    from wfimagevae.eval.prompt_images import MANIFEST, METADATA, begin, save_sheets
    from wfimagevae.eval.report import sets_table
    from wfimagevae.eval.sample_sets import FolderImages, open_reference
    from wfimagevae.files import sole_writer, write_json
    from wfimagevae.generate.generated_files import describe_model
    from wfimagevae.generate.generator_files import load_generator
    from wfimagevae.model.clip import load_clip
    from wfimagevae.model.weight_files import weights_fingerprint

    # All is opened and checked before anything is drawn.
    folder = Path(options.output_dir)
    with world(options.device) as here, sole_writer(folder, here.is_main):
        clip = None if options.clip_model == "none" else load_clip(options.clip_model)
        generator = load_generator(options, here.device, options.mixed_precision)
        if not generator.model.takes_text:
            raise ValueError(
                f"{options.from_pretrained} takes no text: draw from it with scripts/generate.py, "
                "and measure it with scripts/eval_generation.py"
            )
        runs = _runs(options, generator, prompts)
        evaluator, count = None, len(prompts) * runs[0].kept
        if has_reference:
            reference = open_reference(options, count)
            evaluator = SetEvaluator(options, here, reference, options.batch_size)
        plan = {  # all that decides the images and their scores
            "model": describe_model(generator),
            "sampling": [generator.describe(run.sampling) for run in runs],
            "prompts": prompts,
            "images_per_prompt": runs[0].per_prompt,
            "kept": runs[0].kept,
            "batch_size": options.batch_size,
            "output_format": options.output_format,
            "device": generator.device.type,
            "clip": clip and {"model": clip.name, "weights": weights_fingerprint(clip.network)},
        }
        if options.dry_run:
            images = f"{runs[0].per_prompt} images of each of {len(prompts)} prompts"
            if here.is_main:
                print(f"would draw {images} by {', '.join(run.name for run in runs)}")
            return 0
        tracker = None
        if here.is_main:
            begin(folder, plan, options.resume)
            if options.tracker != "none":
                tracker = open_tracker(options.tracker, folder, folder.name, options.values())
        barrier()

        # Draw and score what is not done, then measure all.
        drawn = sum(gather_objects(sum(run.draw(generator, clip, here) for run in runs)))
        results, figures = [], {}
        for run in runs:
            scores = run.finish() if here.is_main else {}
            barrier()
            values, notes, protocol = {}, {}, {"generated_count": count}
            if evaluator:
                values, notes, protocol = evaluator.measure(FolderImages(run.folder / MANIFEST))
            figures |= {f"{run.name}/{metric}": x for metric, x in (scores | values).items()}
            how = {"sampling": generator.describe(run.sampling), "notes": notes}
            results.append({**scores, **values, **how, "protocol": protocol})
        unavailable = evaluator.unavailable if evaluator else {}
        if here.is_main:
            sheets = save_sheets(folder, runs)
            content = {"plan": plan, "results": results, "unavailable": unavailable}
            write_json(folder / METADATA, content)
            print(sets_table(results, unavailable))
            print(f"{folder}: {len(prompts) * len(runs)} prompts, {drawn} of them drawn now")
        if tracker:
            tracker.log(0, figures)
            tracker.log_images(0, {str(s.relative_to(folder).with_suffix("")): s for s in sheets})
            tracker.close()
    return METRIC_UNAVAILABLE if unavailable else 0


def _check(options: PromptEvaluationOptions) -> tuple[list[str], bool]:
    """The prompts, and whether there is a reference; ValueError for flags that contradict."""
    from wfimagevae.engine.report.tracker import check_installed

    check_installed(options.tracker)
    given, reranks = options.model_fields_set, options.use_clip_rerank
    if (options.prompts is None) == (options.prompts_path is None):
        raise ValueError("give either --prompts or --prompts_path")
    idle = {"num_images"} if reranks else {"clip_candidates", "clip_top_k"}
    if idle := sorted(idle & given):
        has = "takes --clip_candidates in place of" if reranks else "must be given for"
        raise ValueError(f"--use_clip_rerank {has} --{idle[0]}")
    if reranks and options.clip_model == "none":
        raise ValueError("--use_clip_rerank needs a --clip_model")
    if reranks and options.clip_top_k > options.clip_candidates:
        top, count = options.clip_top_k, options.clip_candidates
        raise ValueError(f"--clip_top_k {top} of --clip_candidates {count}: give at most as many")
    if options.real_image_dir and options.dataset:
        raise ValueError("give either --real_image_dir or --dataset as the reference")
    if options.dataset in POINT_SETS:
        raise ValueError(f"--dataset {options.dataset}: give images as the reference")
    has_reference = bool(options.real_image_dir or options.dataset)
    if options.metric and not has_reference:
        raise ValueError("--metric compares with a reference: give --real_image_dir or --dataset")
    prompts = [prompt.strip() for prompt in (options.prompts or "").split("|")]
    if options.prompts_path:
        prompts = [prompt.text for prompt in read_prompts(options.prompts_path)]
    elif "" in prompts:
        raise ValueError(f"--prompts {options.prompts!r}: a prompt is empty")
    return prompts, has_reference


def _runs(options: PromptEvaluationOptions, generator, prompts: list[str]) -> list:
    """The images of each sampler, number of steps and scale, each in a folder of its own."""
    from wfimagevae.eval.prompt_images import PromptImages

    per_prompt = kept = options.num_images
    if options.use_clip_rerank:
        per_prompt, kept = options.clip_candidates, options.clip_top_k
    numbers = per_prompt, kept, options.batch_size, options.output_format
    samplings = [generator.resolve(row) for row in options.combinations()]
    names = [f"{s.sampler}-{s.steps}-w{s.guidance_scale:g}" for s in samplings]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is asked for twice: give each --sampler and --steps once")
    folder, is_alone = Path(options.output_dir), len(names) == 1
    return [
        PromptImages(folder if is_alone else folder / name, name, prompts, sampling, *numbers)
        for name, sampling in zip(names, samplings, strict=True)
    ]


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
