"""Trains any task of this repository, on one process or under torchrun.

python train_ddp.py --task vae --image_path photos/ --eval_image_path held_out/
torchrun --nproc_per_node 4 train_ddp.py --task vae --image_path ... --eval_image_path ...
python train_ddp.py --task flow --dataset shapes --max_steps 4000
python train_ddp.py --task glide --data_path captioned/ --eval_data_path held_out/
python train_ddp.py --pipeline examples/pipeline_vae_gan_flow.yaml
"""

import os
import signal
import sys
from pkgutil import resolve_name

import wfimagevae.early  # noqa: F401
from wfimagevae.command_line import find_flag, list_flags, parse, run_cli
from wfimagevae.pipeline.options import PipelineOptions
from wfimagevae.task import TASKS


def main(argv: list[str] | None = None) -> int:
    """Trains what flags, or the file of a pipeline, say; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    flags = {word.split("=")[0] for word in argv}
    if flags & {f"--{name}" for name in PipelineOptions.model_fields}:
        from wfimagevae.pipeline.command import run_file

        return end(run_file(argv))

    task = find_flag("task", argv)
    task_options = resolve_name(TASKS.get(str(task), TASKS["vae"]))

    class Command(task_options, PipelineOptions):
        """The flags of a task, and of a pipeline, which only the command line may name."""

    if "--list_flags" in flags:
        print(list_flags(task_options))
        return 0
    options = parse(Command, argv, __doc__)
    if options.part(PipelineOptions) != PipelineOptions():
        raise ValueError("--pipeline stands on the command line, not in a file of flags")
    train = resolve_name(f"wfimagevae.task.{options.task}:train")
    return end(train(options.part(task_options)))


def end(is_finished: bool) -> int:
    """The exit status: under torchrun, 143 of what a signal stopped, whichever process got it.

    Machines that were not told themselves start again, or wait for the one that was replaced.
    """
    return 0 if is_finished or "TORCHELASTIC_RUN_ID" not in os.environ else 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(run_cli(main, dated=True))
