"""Where a run starts: in which folder, from which checkpoint, with whose weights."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wfimagevae.engine.checkpoint import Stateful, checkpoint_path, list_checkpoints
from wfimagevae.engine.run import Run
from wfimagevae.files import read_torch_file

log = logging.getLogger("wfimagevae")

_AVERAGES = ("ema_state_dict", "other_ema_state_dicts")
_SUFFIX = r"-lr\d\.\d\de[+-]\d+-bs\d+-ga\d+-rs\d+"


def run_name(exp_name: str, lr: float, batch_size: int, accum_steps: int, resolution: int) -> str:
    """Name of a run's folder, such as ``exp-lr1.00e-05-bs4-ga8-rs1024``."""
    return f"{exp_name}-lr{lr:.2e}-bs{batch_size}-ga{accum_steps}-rs{resolution}"


def find_resume(resume: str | None, folder: Path, exp_name: str) -> tuple[Path, Path | None]:
    """The folder to write to and the checkpoint to continue from, if any.

    ``resume`` is a checkpoint, a folder of them, ``auto`` (the newest checkpoint of a run of this
    name, or a fresh start) or None; ``folder`` is where this command's options put a run.
    """
    if Path(exp_name).name != exp_name:
        raise ValueError(f"--exp_name {exp_name}: a name, not a path; folders go into --ckpt_dir")
    if not resume:
        return _unused(folder), None
    if resume == "auto":
        pattern = re.compile(re.escape(exp_name) + _SUFFIX)
        folders = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
        runs = [f for f in folders if pattern.fullmatch(f.name) and list_checkpoints(f)]
        if len(runs) > 1:
            listed = "\n  ".join(str(run) for run in runs)
            raise ValueError(
                f"several runs are named {exp_name!r}; pass one of them to "
                f"--resume_from_checkpoint:\n  {listed}"
            )
        return (runs[0], list_checkpoints(runs[0])[-1]) if runs else (folder, None)
    path = Path(resume)
    if path.is_dir():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise ValueError(f"--resume_from_checkpoint {path}: no checkpoint-<step>.ckpt in it")
        path = checkpoints[-1]
    if not path.is_file():
        raise ValueError(f"--resume_from_checkpoint {path} does not exist")
    is_run = re.fullmatch(re.escape(exp_name) + _SUFFIX, path.parent.name)
    return (path.parent if is_run else _unused(folder)), path


def _unused(folder: Path) -> Path:
    if list_checkpoints(folder):
        raise ValueError(
            f"{folder} already holds checkpoints; continue with --resume_from_checkpoint "
            "auto, or choose another --exp_name"
        )
    return folder


def resume_run(run: Run, content: dict, path: Path, fresh: tuple[str, ...]) -> None:
    """Puts a run where its checkpoint stands; parts named in ``fresh``, by prefix, start anew."""
    parts = run.checkpoint.parts
    if "player_state" not in content:
        log.warning(
            "%s was not written by this repository: weights, average and discriminator are "
            "resumed; its optimizer, data position and randomness are not",
            path,
        )
        fresh += ("optimizer", "player", "sampler", "task", "generator")
    skip = [name for name in parts if name.startswith(fresh)]
    averages = [name for name in parts if name in _AVERAGES]
    run.restore(content, (*skip, *averages))
    good = content.get("last_good", run.step)
    if good is not None:
        run.last_good = good, path if good == run.step else checkpoint_path(path.parent, good)
    for name in averages:
        if content.get(name):
            parts[name].load_state_dict(content[name])
        else:
            log.warning("%s holds no average of the weights: it starts from the raw weights", path)
            parts[name].restart()
    _warn_of_dropped(parts, content, path)
    log.info("resumed %s at step %d", path, run.step)


def _warn_of_dropped(parts: Mapping[str, Stateful], content: dict, path: Path) -> None:
    """Says which averages of the checkpoint this run does not go on with."""
    if "ema_state_dict" not in parts and content.get("ema_state_dict"):
        log.warning("%s holds an average of the weights, dropped here: add --ema to keep it", path)
        return
    others = parts.get("other_ema_state_dicts")
    kept = {str(ema.decay) for ema in others.averages} if others else set()
    dropped = [decay for decay in content.get("other_ema_state_dicts", {}) if decay not in kept]
    if dropped:
        log.warning(
            "%s holds more averages of the weights, dropped here: add %s to --ema_decay to keep "
            "them",
            path,
            " ".join(dropped),
        )


def take_weights(
    parts: Mapping[str, Stateful], weights: Mapping[str, str], paths: Sequence[str]
) -> None:
    """Fills a fresh run's networks from checkpoints of other runs.

    Each player takes the raw weights, found under the name in ``weights``, of the first checkpoint
    that trained it; if both that run and this one average them, the average goes on, with its count
    of updates.
    """
    contents = {path: read_torch_file(Path(path)) for path in paths}
    for player, name in weights.items():
        trained = [p for p in paths if player in contents[p].get("player_state", {})]
        if not trained:
            log.warning("the %s starts fresh: no run in --weights_from trained one", player)
            continue
        content = contents[trained[0]]
        *above, leaf = name.split(".")
        node = content
        for key in above:
            node = node[key]
        try:
            parts[name].load_state_dict(node[leaf])
        except (RuntimeError, ValueError) as error:  # the first is torch's word for it
            raise ValueError(f"the {player} of {trained[0]} does not fit: {error}") from None
        log.info("the %s starts from %s", player, trained[0])
        if name != "state_dict.gen_model" or "ema_state_dict" not in parts:
            continue
        # The averages of that run, or new ones from the weights just taken.
        for average in [entry for entry in _AVERAGES if entry in parts]:
            if content.get(average):
                parts[average].load_state_dict(content[average])
            else:
                parts[average].restart()
        if content.get("ema_state_dict"):
            parts["ema_state_dict"].num_updates = content["player_state"][player]["ema_updates"]
            log.info("its average of the weights goes on")
