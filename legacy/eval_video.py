"""Measures reconstructed videos against their originals, frame by frame, by relative path.

python legacy/eval_video.py --real_video_dir clips --generated_video_dir reconstructions \\
    --num_frames 33 --resolution 256 --output_json metrics.json
torchrun --nproc_per_node 8 legacy/eval_video.py ...
"""

from collections.abc import Sequence
from typing import Literal

from clip_options import ClipFolderOptions
from wfimagevae.command_line import parse, run_cli
from wfimagevae.engine.options import DeviceOptions
from wfimagevae.eval.options import EXIT_STATUS, METRIC_UNAVAILABLE, MetricOptions, WeightFile
from wfimagevae.options import Count, OutputFile, option


class VideoEvaluationOptions(ClipFolderOptions, DeviceOptions):
    """metrics"""

    metric: list[Literal["psnr", "ssim", "lpips"]] = option(
        ["psnr", "ssim", "lpips"], "what to measure"
    )
    lpips_net: Literal["vgg", "alex"] = option("alex", "backbone of LPIPS")
    lpips_weights: WeightFile | None = option(
        None, "torchvision backbone of LPIPS, if not cached", "FILE"
    )
    batch_size: Count = option(16, "frames measured at once", "N")
    output_json: OutputFile | None = option(None, "where to write figures and protocol", "FILE")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(VideoEvaluationOptions, argv, f"{__doc__}\n{EXIT_STATUS}")

    from clip_folder import read_share, tell_left_out
    from clip_pairs import ClipPairs, describe

    from wfimagevae.engine.distributed import gather_objects, world
    from wfimagevae.eval.evaluator import Evaluator
    from wfimagevae.eval.report import evaluation_json, format_value, markdown_table, remarks
    from wfimagevae.files import write_json

    pairs, left_out, count = ClipPairs(options), [], 0
    with world(options.device) as here:
        chosen = {name: getattr(options, name) for name in ("metric", "lpips_net", "lpips_weights")}
        evaluator = Evaluator(options.metric, here.device, MetricOptions(**chosen))
        for _, real, generated in read_share(pairs, options.num_workers, here, left_out):
            count += 1
            clips = [clip.frames.transpose(0, 1) for clip in (real, generated)]  # (T, 3, H, W)
            for frames in zip(*(clip.split(options.batch_size) for clip in clips), strict=True):
                evaluator.update(*frames)
        missing, count = tell_left_out(left_out, here), sum(gather_objects(count))
        values = evaluator.compute()
        if here.is_main:
            rows = [[name, format_value(name, values.get(name))] for name in evaluator.names]
            head = ["metric", f"{evaluator.count} frames of {count} videos"]
            notes = remarks(evaluator.notes, evaluator.unavailable)
            print("\n".join([markdown_table(head, rows), *notes]))
            if options.output_json:
                protocol = describe(options, count, evaluator.count)
                content = evaluation_json(evaluator, values, protocol, missing)
                write_json(options.output_json, content)
                print(f"written: {options.output_json}")
    return METRIC_UNAVAILABLE if evaluator.unavailable else int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
