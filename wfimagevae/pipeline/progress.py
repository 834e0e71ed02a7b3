"""What of a pipeline is done: read from its output folder, and compared with its file."""

import json
from dataclasses import dataclass
from pathlib import Path

from wfimagevae.engine.checkpoint import list_checkpoints
from wfimagevae.model.weight_files import read_torch_file
from wfimagevae.pipeline.document import PipelineError

# Options that may change without another result.
_HARMLESS = {
    *("device", "dataset_num_worker", "dataloader_prefetch_factor", "disable_persistent_workers"),
    *("index_cache_dir", "wds_cache_dir", "ckpt_dir", "exp_name", "save_ckpt_step"),
    *("save_every_minutes", "keep_last", "resume_from_checkpoint", "csv_log_steps"),
    *("csv_log_path", "disable_csv_log", "disable_live_plot", "live_plot_every_steps", "tracker"),
    *("list_flags", "config", "sample_prompts", "eval_num_images", "eval_num_image_log"),
    *("disable_val_image_dump", "disable_patch_score_vis", "patch_score_vis_max_samples"),
    *("max_bad_updates", "lpips_weights", "find_unused_parameters"),
}


@dataclass(frozen=True)
class StepState:
    """Where a step stands.

    Attributes:
        folder: Of its run.
        checkpoint: Its newest; None where it has not begun.
        finished: There is nothing left to train.
        options: It was last trained with; none where it has not begun.
    """

    folder: Path
    checkpoint: Path | None
    finished: bool
    options: dict


def read_state(folder: Path) -> StepState:
    """Where the step of a folder stands.

    Raises:
        ValueError: its newest checkpoint cannot be read.
    """
    saved = list_checkpoints(folder)
    if not saved:
        return StepState(folder, None, False, {})
    finished = bool(read_torch_file(saved[-1]).get("finished"))
    path = folder / "options.json"
    options = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return StepState(folder, saved[-1], finished, options)


def changed_options(state: StepState, options: dict) -> list[str]:
    """``name: before -> now`` of the options that would have given another result."""
    now = json.loads(json.dumps(options))
    harmless = _HARMLESS | ({"log_steps"} if not now.get("stop_metric") else set())
    return [
        f"{name}: {state.options[name]} -> {now.get(name)}"
        for name in state.options
        if name not in harmless and state.options[name] != now.get(name)
    ]


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
