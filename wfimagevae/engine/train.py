"""From options to a finished run: what every kind of training shares."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.engine.checkpoint import list_checkpoints, whole_checkpoint
from wfimagevae.engine.device import enable_fast_kernels, library_versions
from wfimagevae.engine.distributed import World, barrier, broadcast_object, world
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.engine.report.metrics import check_csv_log, csv_log_path
from wfimagevae.engine.report.tracker import open_tracker
from wfimagevae.engine.resume import find_run, start
from wfimagevae.engine.run import Run, Watcher
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.files import sole_writer

log = logging.getLogger("wfimagevae")

_Options = TypeVar("_Options", bound=TrainingOptions)


def run_training(
    options: _Options,
    assemble: Callable[[_Options, World, Path], Task],
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> bool:
    """Trains until the last step, or until a signal; resumes where the options say so.

    ``assemble`` builds the training from the options, this process and the run's folder. A run in a
    ``folder`` goes on where it stands; None finds the folder as the options say. Returns True if
    training is finished, False if a signal stopped it.
    """
    if options.csv_log_path:  # whoever reads options.json may stand elsewhere
        path = Path(options.csv_log_path).expanduser().absolute()
        options = options.changed(csv_log_path=str(path))
    how = " with --resume_from_checkpoint auto" if folder is None else ""
    with world(options.device) as process, contextlib.ExitStack() as stack:
        log.setLevel(logging.INFO if process.is_main else logging.WARNING)
        seed_everything(options.seed)
        kernels = enable_fast_kernels(process.device)
        # The main process alone looks for the run: the others could see half of what it makes.
        place = None
        if process.is_main and folder is None:
            place = find_run(options)
        elif process.is_main:
            place = folder, next(reversed(list_checkpoints(folder)), None)
        folder, resume = broadcast_object(place)
        stack.enter_context(sole_writer(folder, process.is_main))
        if process.is_main:
            is_exact = how and Path(options.resume_from_checkpoint or "").is_file()
            resume = resume and whole_checkpoint(resume, may_go_back=not is_exact)
            check_csv_log(csv_log_path(options, folder))
        resume = broadcast_object(resume)
        # Networks, data and players; the tracker comes last, as it may start processes.
        task = assemble(options, process, folder)
        stack.callback(task.loader.close)
        schedules = (schedule for player in task.players for schedule in player.schedules)
        follows = any(schedule.options.lr_schedule == "plateau" for schedule in schedules)
        if follows and not (options.eval_steps and task.validator):
            raise ValueError(
                "--lr_schedule plateau follows validations, and this run makes none: give "
                "--eval_steps above 0 and held-out data, or another schedule"
            )
        kind = options.tracker if process.is_main else "none"
        tracker = open_tracker(kind, folder, options.exp_name, options.values())
        barrier()
        run = Run(options, process, folder, task, tracker, watcher)
        with run.interrupt:
            seed_everything(options.seed, process.rank)
            start(run, resume)
            compiled, kernels = ", compiled" * options.compile, f"; {kernels}" if kernels else ""
            log.info(
                "effective batch %d = %d x %d micro-batches x %d processes; %d steps",
                *(run.samples_a_step, options.batch_size, options.grad_accum_steps),
                *(process.size, run.max_steps),
            )
            where = f"device {process.device}, precision {options.mix_precision}"
            log.info("%s%s%s", where, compiled, kernels)
            log.info("%s; kill -USR1 %d saves and draws now", library_versions(), os.getpid())
            with logging_redirect_tqdm():
                fit(run)
            run.reporter.summary(plots=not run.stopping)  # which take seconds
            if not run.stopping:  # else a process whose data failed may be gone
                run.stopping = run.interrupt.agree().stop
        if run.stopping:
            done = f"stopped by a signal after step {run.step}"
            log.info("%s; run the same command%s to go on", done, how)
        tracker.close()
        return run.finished and not run.stopping
