"""From options to a finished run: its folder, where it goes on from, and the training itself."""

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tqdm.contrib.logging import logging_redirect_tqdm

from wfimagevae.engine.checkpoint import (
    check_types,
    checkpoint_size,
    fitting,
    list_checkpoints,
    read_checkpoint,
    restore,
    set_aside,
    step_of,
    whole_checkpoint,
)
from wfimagevae.engine.device import compiles, library_versions
from wfimagevae.engine.distributed import World, broadcast_object, world
from wfimagevae.engine.dry_run import dry_run
from wfimagevae.engine.interrupt import LeftOff
from wfimagevae.engine.loop import Task, fit
from wfimagevae.engine.optim import run_length
from wfimagevae.engine.options import LoggingOptions, TrainingOptions
from wfimagevae.engine.report.tracker import open_tracker
from wfimagevae.engine.run import Run, Watcher
from wfimagevae.engine.seeding import seed_everything
from wfimagevae.files import is_folder, read_json, read_torch_file, sole_writer, write_text

log = logging.getLogger("wfimagevae")

_AVERAGES = ("ema_state_dict", "other_ema_state_dicts")
_QUIET = {*LoggingOptions.model_fields, "config", "resume_from_checkpoint"}
_RECORDS = ("metrics.jsonl", "validation.jsonl", "val_patch_scores/summary.csv")
_PICTURE = re.compile(r"step-(\d+)(-.*\.png)?")
_SUFFIX = r"-lr\d\.\d\de[+-]\d+-bs\d+-ga\d+-rs\d+"
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
    training is finished, or was a dry run, False if a signal stopped it.
    """
    if options.dry_run:
        dry_run(options, assemble)
        return True
    if options.csv_log_path:  # whoever reads options.json may stand elsewhere
        path = Path(options.csv_log_path).expanduser().absolute()
        options = options.changed(csv_log_path=str(path))
    how = " with --resume_from_checkpoint auto" if folder is None else ""
    with world(options.device, options.ddp_timeout) as process, contextlib.ExitStack() as stack:
        is_compiled, is_main = compiles(options, process.device), process.is_main
        log.setLevel(logging.INFO if is_main else logging.WARNING)
        seed_everything(options.seed)
        # The main process alone looks for the run: the others could see half of what it makes.
        place = None
        if is_main:
            if folder is None:
                folder, resume = find_run(options)
            else:
                resume = next(reversed(list_checkpoints(folder)), None)
            stack.enter_context(sole_writer(folder))
            if resume:
                named = Path(options.resume_from_checkpoint or "")
                is_exact = how and named.exists() and not is_folder(named)
                resume = whole_checkpoint(resume, may_go_back=not is_exact)
            place = folder, resume
        folder, resume = broadcast_object(place)
        # Networks, data and players; the tracker comes last, as it may start processes.
        task = assemble(options.changed(compile=is_compiled), process, folder)
        stack.callback(task.loader.close)
        for player in task.players:
            for schedule in player.schedules:
                if schedule.options.lr_schedule == "plateau" and not task.validator:
                    raise ValueError(
                        "--lr_schedule plateau follows validations, and this run makes none: give "
                        "--eval_steps above 0 and held-out data, or another schedule"
                    )
        tracker = None
        if is_main and options.tracker != "none":
            tracker = open_tracker(options.tracker, folder, options.exp_name, options.values())
        run = Run(options, process, folder, task, tracker, watcher)
        if is_main and not resume:  # what ends without a step leaves nothing
            stack.callback(lambda: run.step or (folder / "options.json").unlink(missing_ok=True))
        with run.interrupt, logging_redirect_tqdm():
            seed_everything(options.seed, process.rank)
            start(run, resume)
            log.info(
                "effective batch %d = %d x %d micro-batches x %d processes; %d steps",
                *(run.samples_a_step, options.batch_size, options.grad_accum_steps),
                *(process.size, run.max_steps),
            )
            where = f"device {process.device}, precision {options.mix_precision}"
            log.info("%s%s", where, ", compiled" * is_compiled)
            log.info("%s", library_versions())
            size, pid = checkpoint_size(run.parts, task.players, options), os.getpid()
            log.info("a checkpoint takes %.3g GB; kill -USR1 %d saves one and draws now", size, pid)
            try:
                fit(run)
                run.interrupt.may_end = True
                run.reporter.summary(plots=not run.stopping)  # which take seconds
            except LeftOff:
                run.leave_off()
            run.interrupt.may_end = False
            if not run.stopping:  # else a process whose data failed may be gone
                run.stopping = run.interrupt.agree().stop
        if run.stopping:
            log.info("stopped by a signal after step %d; the same command%s goes on", run.step, how)
        if tracker:
            tracker.close()
        return run.finished and not run.stopping


def find_run(options: TrainingOptions) -> tuple[Path, Path | None]:
    """The folder to write to and the checkpoint to continue from, if any.

    The folder's name tells of the options, such as ``exp-lr1.00e-05-bs4-ga8-rs1024``.
    """
    resume, name = options.resume_from_checkpoint, options.exp_name
    if Path(name).name != name:
        raise ValueError(f"--exp_name {name}: a name, not a path; folders go into --ckpt_dir")
    sizes = f"bs{options.batch_size}-ga{options.grad_accum_steps}-rs{options.resolution}"
    above = Path(options.ckpt_dir).expanduser()
    folder, path = above / f"{name}-lr{options.lr:.2e}-{sizes}", None
    runs = re.compile(re.escape(name) + _SUFFIX)
    if resume == "auto":
        folders = [f for f in sorted(above.glob("*")) if runs.fullmatch(f.name)]
        found = [folder for folder in folders if list_checkpoints(folder)]
        if len(found) > 1:
            listed = "\n  ".join(map(str, found))
            raise ValueError(f"several runs are named {name!r}; give one's path:\n  {listed}")
        return (found[0], list_checkpoints(found[0])[-1]) if found else (folder, None)
    if resume:
        path = Path(resume)
        if is_folder(path):
            checkpoints = list_checkpoints(path)
            if not checkpoints:
                raise ValueError(f"--resume_from_checkpoint {path}: no checkpoint in it")
            path = checkpoints[-1]
        elif not path.exists():
            raise ValueError(f"--resume_from_checkpoint {path} does not exist")
        if runs.fullmatch(path.parent.name):
            # What torchrun starts again goes on from where it got, not from where it began.
            is_restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            return path.parent, list_checkpoints(path.parent)[-1] if is_restart else path
    if list_checkpoints(folder):
        raise ValueError(
            f"{folder} already holds checkpoints; continue with --resume_from_checkpoint "
            "auto, or choose another --exp_name"
        )
    return folder, path


def start(run: Run, path: Path | None) -> None:
    """Puts a run where it goes on; from then on the folder is this run's. Collective."""
    before, current = {}, run.folder / "options.json"
    if path:
        file = path.with_name("options.json")
        if run.world.is_main and file.exists():
            try:
                before = read_json(file)
            except ValueError as error:
                log.warning("what changed since is not known: %s", error)
        before = broadcast_object(before)
        try:
            with fitting("what it holds of the run"):
                _resume(run, path, before)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    elif run.options.weights_from:
        _take_weights(run)
    best = run.folder / run.task.best_name
    if run.world.is_main:
        now = run.options.values()
        if path:
            _set_later_aside(run, best)
            names = sorted(before.keys() & now.keys() - _QUIET)
            changes = [f"--{n} {before[n]} -> {now[n]}" for n in names if before[n] != now[n]]
            for change in changes:
                log.warning("changed at step %d: %s", run.step, change)
            if changes and path.parent == run.folder:
                earlier = run.folder / f"options-{run.step}.json"
                if earlier.exists():
                    set_aside(earlier)
                current.rename(earlier)
        write_text(current, json.dumps(now, indent=2, sort_keys=True))
    # The best may have been set aside, and a score that no file has is no bar for later ones.
    if not broadcast_object(best.exists()):
        run.best_score = -math.inf


def _set_later_aside(run: Run, best: Path) -> None:
    """What was saved after the step to go on from, the best one too, is no longer the newest."""
    step = run.step
    later = [path for path in list_checkpoints(run.folder) if step_of(path) > step]
    if not later:
        return
    try:
        is_later = read_checkpoint(best).get("current_step", 0) > step
    except (ValueError, OSError):  # damaged, as the one may be from which it goes back; or none
        is_later = best.exists()
    for place in map(set_aside, later + [best] * is_later):
        log.warning("goes back to step %d: %s is set aside", step, place)
    # Pictures of these steps, and records up to them.
    pictures = [(p, _PICTURE.fullmatch(p.name)) for p in run.folder.glob("val_*/**/step-*")]
    moved = [set_aside(path) for path, match in pictures if match and int(match[1]) > step]
    records = [run.folder / name for name in _RECORDS]
    records += [run.reporter.csv_path] if run.reporter.csv_path else []
    moved += [set_aside(path, keep=True) for path in records if path.exists()]
    log.warning("and so are %d pictures, folders of them and records", len(moved))


def _plan_rest(run: Run, content: dict, before: dict) -> None:
    """Length and schedules of the rest of a run, whose updates may be of another size now."""
    step, size, options = run.step, run.samples_a_step, run.options
    position = run.task.loader.state_dict()["position"] or step * size
    unit = content.get("schedule_unit", position / step if step else size)
    length = len(run.task.loader.dataset), run.world.size, step, position
    run.max_steps, run.epoch_steps = run_length(options, *length)
    counts_steps = options.max_steps or run.epoch_steps == options.max_steps_per_epoch
    previous, processes = unit, len(content.get("rng_state", ()))
    if processes and {"batch_size", "grad_accum_steps"} <= before.keys():
        previous = before["batch_size"] * before["grad_accum_steps"] * processes
    is_same_plan = options.max_steps == before.get("max_steps")
    run.unit = float(size) if counts_steps and is_same_plan else unit
    run.step_offset = position / size - step
    if run.finished:
        return
    # Learning rates go on from where they were, unless the length is another.
    left = zip(run.task.players, *map(run.task.updates, (run.max_steps, step)), strict=True)
    for player, total, done in left:
        player.plan_rest(total - done, size / run.unit)
    player = run.task.players[0]
    if player.clock:
        last = content["optimizer_state"]["gen_optimizer"]["param_groups"][0]["lr"]
        rate = player.peak_lrs[0] * player.schedules[0](player.clock - previous / unit)
        if abs(rate - last) > 0.01 * player.peak_lrs[0]:
            text = "the learning rate goes from %.4g to %.4g, by a %s schedule to step %d"
            log.info(text, last, rate, options.lr_schedule, run.max_steps)
    if size == previous:
        return
    now = f"an update takes {size} samples, {previous:g} before"
    if not counts_steps:
        log.info("%s: --epochs %d end at step %d", now, options.epochs, run.max_steps)
    elif is_same_plan:
        rest = run.max_steps - step
        keeping = step + math.ceil(rest * previous / size)
        log.info(
            "%s: step %d comes after %.0f samples in place of %.0f; --max_steps %d keeps the plan",
            *(now, run.max_steps, position + rest * size, position + rest * previous, keeping),
        )


def _resume(run: Run, path: Path, before: dict) -> None:
    """Restores the run, but parts that start anew; averages that there are not start from now."""
    content, parts = read_checkpoint(path), run.parts
    fresh = run.task.fresh_parts
    if run.options.not_resume_optimizer:
        fresh += ("optimizer_state", "player_state")
    if "player_state" not in content:
        log.warning(
            "%s was not written by this repository: weights, average and discriminator are "
            "resumed; its optimizer, data position and randomness are not",
            path,
        )
        fresh += ("optimizer", "player", "sampler", "task", "generator")
    fresh += _AVERAGES
    restore({n: part for n, part in parts.items() if not n.startswith(fresh)}, content)
    check_types(content, run.facts(), "the checkpoint")
    run.restore(content, path)
    _plan_rest(run, content, before)
    if not _take_averages(run, content):
        log.warning("%s holds no average of the weights: it starts from the raw weights", path)
    # Averages of the checkpoint that this run does not go on with.
    others = parts.get("other_ema_state_dicts")
    kept = others.state_dict().keys() if others else ()
    dropped = [decay for decay in content.get("other_ema_state_dicts", {}) if decay not in kept]
    how = f"{' '.join(dropped)} to --ema_decay"
    if "ema_state_dict" not in parts and content.get("ema_state_dict"):
        how, dropped = "--ema", True
    if dropped:
        log.warning(
            "%s holds an average of the weights, dropped here: add %s to keep it", path, how
        )
    log.info("resumed %s at step %d", path, run.step)


def _take_averages(run: Run, content: dict) -> bool:
    """Goes on with the content's averages; False if it lacks some, which start anew."""
    parts = {name: run.parts[name] for name in _AVERAGES if name in run.parts}
    found = {name: content.get(name) or {} for name in parts}
    restore(parts, found)
    return all(found.values())


def _take_weights(run: Run) -> None:
    """Fills a fresh run's networks from checkpoints of other runs.

    Each player takes the raw weights of the first checkpoint that trained it; if both that run and
    this one average them, the average goes on, with its count of updates.
    """
    paths = run.options.weights_from
    contents = {path: read_torch_file(Path(path)) for path in paths}
    for player, name in run.task.weights.items():
        if name.startswith(run.task.fresh_parts):
            continue
        path = next((p for p in paths if player in contents[p].get("player_state", {})), None)
        if path is None:
            log.warning("the %s starts fresh: no run in --weights_from trained one", player)
            continue
        content = contents[path]
        if path == run.options.pretrained_model_name_or_path:
            # `from_pretrained` read it first, and let it lack parts that start fresh.
            own, others = run.task.network.state_dict(), content.get("other_ema_state_dicts", {})
            states = [content["state_dict"]["gen_model"], content.get("ema_state_dict")]
            for state in filter(None, states + [entry["average"] for entry in others.values()]):
                state |= {name: own[name] for name in own.keys() - state.keys()}
        try:
            restore({name: run.parts[name]}, content)
        except ValueError as error:
            raise ValueError(f"the {player} of {path}: {error}") from None
        log.info("the %s starts from %s", player, path)
        if name == "state_dict.gen_model" and "ema_state_dict" in run.parts:
            _take_averages(run, content)
            if content.get("ema_state_dict"):
                count = content["player_state"][player]["ema_updates"]
                run.parts["ema_state_dict"].num_updates = count
                log.info("its average of the weights goes on")
