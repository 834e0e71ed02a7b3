"""Measures reconstructions against their originals, paired by relative path.

python scripts/eval_image.py --real_image_dir photos --generated_image_dir reconstructions \
    --resolution 256 --output_json metrics.json
torchrun --nproc_per_node 8 scripts/eval_image.py ...
"""

from pathlib import Path

from wfimagevae.command_line import parse, run_cli
from wfimagevae.eval.options import EXIT_STATUS, METRIC_UNAVAILABLE, PairOptions
from wfimagevae.generate.options import DeviceOptions
from wfimagevae.options import OutputFile, new_defaults, option


@new_defaults(batch_size=8)
class EvaluationOptions(PairOptions, DeviceOptions):
    """files"""

    generated_image_dir: str = option(
        ...,
        "reconstructions, at the size that --resolution and --crop_size give; a top-level "
        "folder 'origin' in it is left out",
        "PATH",
    )
    output_json: OutputFile | None = option(None, "where to write figures and protocol", "FILE")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(EvaluationOptions, argv, f"{__doc__}\n{EXIT_STATUS}")

    from wfimagevae.dataset import ValidImageDataset
    from wfimagevae.engine.distributed import world
    from wfimagevae.eval.evaluator import Evaluator
    from wfimagevae.eval.pairs import PairDataset, evaluate_pairs
    from wfimagevae.eval.report import describe_protocol, evaluation_json, evaluation_table
    from wfimagevae.files import write_json
    from wfimagevae.generate.image_folder import open_folder

    real = open_folder(options)
    generated = ValidImageDataset(options.generated_image_dir)
    pairs = PairDataset(real, generated, is_subset=bool(options.subset_size))
    with world(options.device) as here:
        evaluator = Evaluator(options.metric, here.device, options)
        values = evaluate_pairs(pairs, evaluator, options, here)
        if here.is_main:
            print(evaluation_table(evaluator, values))
            if options.output_json:
                counts = evaluator.count, len(pairs.unreadable)
                protocol = describe_protocol(list(values), options, *counts)
                content = evaluation_json(evaluator, values, protocol, pairs.unreadable)
                write_json(options.output_json, content)
                print(f"written: {Path(options.output_json)}")
    return METRIC_UNAVAILABLE if evaluator.unavailable else int(bool(pairs.unreadable))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
