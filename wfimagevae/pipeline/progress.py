"""What of a pipeline is done: read from its output folder, and compared with its file."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wfimagevae.engine.checkpoint import list_checkpoints
from wfimagevae.files import read_torch_file, write_atomically
from wfimagevae.pipeline.document import PipelineError

# Options that may change without another result; those of validation may, besides.
_HARMLESS = {
    *("device", "dataset_num_worker", "dataloader_prefetch_factor", "disable_persistent_workers"),
    *("index_cache_dir", "wds_cache_dir", "ckpt_dir", "exp_name", "save_ckpt_step"),
    *("save_every_minutes", "keep_last", "resume_from_checkpoint", "csv_log_steps"),
    *("csv_log_path", "disable_csv_log", "disable_live_plot", "live_plot_every_steps", "tracker"),
    *("list_flags", "config"),
    *("sample_prompts", "sampler", "sampling_steps", "guidance_scale"),
    *("disable_val_image_dump", "disable_patch_score_vis", "patch_score_vis_max_samples"),
    *("max_bad_updates", "lpips_weights", "find_unused_parameters"),
    "model_config",  # its content is compared
}
_NETWORK = "network.json"


@dataclass(frozen=True)
class StepState:
    """Where a step stands.

    Attributes:
        folder: Of its run.
        checkpoint: Its newest; None where it has not begun.
        finished: There is nothing left to train.
        options: It was last trained with; none where it has not begun.
        network: Configuration of what it trains; none where that was not kept.
    """

    folder: Path
    checkpoint: Path | None
    finished: bool
    options: dict
    network: dict


def read_state(folder: Path) -> StepState:
    """Where the step of a folder stands.

    Raises:
        ValueError: its newest checkpoint cannot be read.
    """
    saved = list_checkpoints(folder)
    if not saved:
        return StepState(folder, None, False, {}, {})
    finished = bool(read_torch_file(saved[-1]).get("finished"))
    options, network = (_read(folder / name) for name in ("options.json", _NETWORK))
    return StepState(folder, saved[-1], finished, options, network)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep_network(folder: Path, network: dict) -> None:
    """Notes beside a step's checkpoints the configuration of what it trains."""
    text = json.dumps(network, indent=2, sort_keys=True)
    write_atomically(folder / _NETWORK, lambda file: file.write(text.encode()))


def changed_options(state: StepState, options: dict) -> list[str]:
    """``name: before -> now`` of the options that would have given another result."""
    before, now = (_moved(given) for given in (state.options, json.loads(json.dumps(options))))
    harmless = _HARMLESS | ({"log_steps"} if not now.get("stop_metric") else set())
    if not any(_waits_for_scores(given) for given in (before, now)):
        harmless |= {name for name in before if name.startswith("eval_")}
    return _differences(before, now, set(before) - harmless)


def changed_network(state: StepState, network: dict) -> list[str]:
    """``name: before -> now`` of what the file says otherwise of a step's network."""
    now = json.loads(json.dumps(network))
    names = state.network.keys() | now.keys() if state.network else ()
    return _differences(state.network, now, names)


def changed_optimizers(state: StepState, options: dict) -> list[str]:
    """``name: before -> now`` of optimizers, whose state is no other one's."""
    before, now = (_optimizers(given) for given in (state.options, options))
    return _differences(before, now, before if state.options else ())


def _optimizers(options: dict) -> dict[str, str]:
    found = {"optimizer": options.get("optimizer")}
    for name in ("discriminator_options", "text_encoder_options"):
        if name in options:
            found[f"optimizer of {name}"] = options[name].get("optimizer", found["optimizer"])
    return found


def _differences(before: dict, now: dict, names: Iterable[str]) -> list[str]:
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(names)
        if before.get(name) != now.get(name)
    ]


def _moved(options: dict) -> dict:
    """Options as if the steps' folder, wherever it is and however it is spelled, were here."""
    folder = re.escape(str(options.get("ckpt_dir")))

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(entry) for entry in value]
        if isinstance(value, str):  # a path, or KIND:PATH
            return re.sub(rf"(^|:){folder}/", r"\1", value)
        return value

    return {name: move(value) for name, value in options.items()}


def _waits_for_scores(options: dict) -> bool:
    """Whether validations change a learning rate."""
    own = [options, *(value for value in options.values() if isinstance(value, dict))]
    return any(part.get("lr_schedule") == "plateau" for part in own)


def check_folders(output: Path, states: list[StepState]) -> None:
    """Raises PipelineError where the output holds steps that do not follow from this file."""
    expected = {state.folder.name for state in states}
    folders = sorted((output / "steps").glob("*")) if (output / "steps").is_dir() else []
    strange = [f.name for f in folders if f.name not in expected and list_checkpoints(f)]
    if strange:
        raise PipelineError(
            f"{output} holds steps that the file does not have at that place: "
            f"{', '.join(strange)}; give another output_path, or restore their names and order"
        )
    unfinished = next((i for i, state in enumerate(states) if not state.finished), len(states))
    if later := [state.folder.name for state in states[unfinished + 1 :] if state.checkpoint]:
        first = states[unfinished].folder.name
        raise PipelineError(
            f"{output} holds {', '.join(later)}, trained from what {first} was, which is not "
            "finished: move the later ones away to train them anew"
        )
