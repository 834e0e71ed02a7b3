"""What of a pipeline is done: read from its output folder, and compared with its file."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from wfimagevae.dataset.options import LoaderOptions
from wfimagevae.engine.checkpoint import list_checkpoints, whole_checkpoint
from wfimagevae.engine.options import CheckpointOptions, DeviceOptions, LoggingOptions
from wfimagevae.files import DIFFUSERS, read_json, read_torch_file
from wfimagevae.options import Options
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.flags import step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS, StepSection
from wfimagevae.pipeline.instead import key_of
from wfimagevae.pipeline.networks import VaeFacts, network_config
from wfimagevae.pipeline.steps import Pipeline, Step
from wfimagevae.task.flow_options import FlowValidationOptions
from wfimagevae.task.vae_options import VaeValidationOptions

# Options that may change without another result; those of validation may, besides.
_GROUPS = (DeviceOptions, LoaderOptions, CheckpointOptions, LoggingOptions)
_GROUPS += (VaeValidationOptions, FlowValidationOptions)
_HARMLESS = {n for group in _GROUPS for n in group.model_fields if not n.startswith("eval_")}
_HARMLESS -= {"log_steps", "weights_from"}
_HARMLESS |= {"config", "exp_name", "wds_cache_dir", "max_bad_updates", "lpips_weights"}
_HARMLESS |= {"find_unused_parameters", "eval_clip_model"}
_HARMLESS |= {"model_config"}  # its content is compared
NETWORK_FILE = "network.json"
_CONVERTED = {k.flag: f"{name}, as {k.flag}" for name, k in StepSection.keys().items() if k.unit}
_LENGTH = ("steps:", "n_epochs:", "max_steps:")  # keys of a step's length


@dataclass(frozen=True)
class StepState:
    """Where a step stands."""

    folder: Path
    checkpoint: Path | None = None  # its newest; None where it has not begun
    finished: bool = False
    options: dict | None = None  # what it was last trained with
    network: dict | None = None  # configuration of what it trains, where that was kept

    def changed_options(self, options: Options) -> list[str]:
        """``name: before -> now`` of the options that would have given another result."""
        before, now = _moved(self.options or {}), _moved(options.values())
        harmless = _HARMLESS | ({"log_steps"} if not now.get("stop_metric") else set())
        # Validations count only where they change a learning rate.
        if '"lr_schedule": "plateau"' not in json.dumps([before, now]):
            harmless |= {name for name in before if name.startswith("eval_")}
        return _differences(before, now, set(before) - harmless)


def step_options(pipeline: Pipeline, vae: VaeFacts, step: Step) -> Options:
    """The options of a step's training, with the weights that earlier steps leave it."""
    flags, _ = step_flags(pipeline, step, vae.units(step.size) if step.task == "vae" else None)
    same = [str(_last(pipeline, other)) for other in pipeline.before(step, step.task)][::-1]
    if same:
        flags |= {"pretrained_model_name_or_path": same[0], "weights_from": same}
        if step.task == "vae":
            flags["model_config"] = None
    if step.task == "flow" and vae_source(pipeline, step):
        folder = pipeline.folder(step)
        flags["vae"] = f"{vae.name}:{folder / 'autoencoder'}"
        if vae.name.startswith(DIFFUSERS):  # as it is: it says how its latents are normalised
            flags["vae"] = vae.name
        if step.settings.cache_latents:
            flags |= {"dataset": "latents", "data_path": str(folder / "latents")}
            for name in ("captions", "fixed_prompt_prefix"):
                flags.pop(name, None)
            if step.source.section.held_out:
                flags["eval_data_path"] = str(folder / "held_out_latents")
    return OPTIONS[step.task](**flags)


def vae_source(pipeline: Pipeline, step: Step) -> str | None:
    """The weights of the VAE that a flow step learns the latents of; None: pixels."""
    before = pipeline.before(step, "vae")
    return str(_last(pipeline, before[-1])) if before else pipeline.content.model.vae.pretrained


def _last(pipeline: Pipeline, step: Step) -> Path:
    """A step's last checkpoint; before it has one, where its checkpoints go."""
    folder = pipeline.folder(step)
    saved = list_checkpoints(folder)
    return saved[-1] if saved else folder


def read_state(folder: Path) -> StepState:
    """Where the step of a folder stands.

    Raises:
        ValueError: none of its checkpoints can be read.
    """
    saved = list_checkpoints(folder)
    if not saved:
        return StepState(folder)
    newest = whole_checkpoint(saved[-1])
    files = [folder / name for name in ("options.json", NETWORK_FILE)]
    read = [read_json(file) if file.exists() else None for file in files]
    content = read_torch_file(newest)
    owes = content.get("validation_owed") or content.get("samples_owed")
    return StepState(folder, newest, bool(content.get("finished") and not owes), *read)


def read_states(pipeline: Pipeline, vae: VaeFacts) -> list[StepState]:
    """Where each step stands.

    Raises:
        PipelineError: the output holds steps that do not follow from this file, or that it says
            otherwise than they were trained.
        ValueError: a checkpoint cannot be read.
    """
    output, states = pipeline.output, [read_state(pipeline.folder(s)) for s in pipeline.steps]
    expected = {state.folder.name for state in states}
    folders = sorted((output / "steps").glob("*"))
    if strange := [f.name for f in folders if f.name not in expected and list_checkpoints(f)]:
        raise PipelineError(
            f"{output} holds steps that the file does not have at that place: "
            f"{', '.join(strange)}; give another output_path, or restore their names and order"
        )
    finished = len(list(takewhile(lambda state: state.finished, states)))
    if later := [state.folder.name for state in states[finished + 1 :] if state.checkpoint]:
        raise PipelineError(
            f"{output} holds {', '.join(later)}, trained from what {states[finished].folder.name} "
            "was, which is not finished: move the later ones away to train them anew"
        )
    for step, state in zip(pipeline.steps, states, strict=True):
        network = network_config(pipeline, vae, step)
        changed = _differences(state.network, network, {*(state.network or {}), *network})
        options = step_options(pipeline, vae, step)
        if state.finished:
            changed += state.changed_options(options)
        else:  # its optimizers' state is no other one's
            before, now = _optimizers(state.options or {}), _optimizers(options.values())
            changed += _differences(state.options and before, now, before)
        if changed:
            stands = "is finished" if state.finished else "has begun"
            anew = "" if state.finished else f", or move {state.folder} away to begin it anew"
            if all(text.startswith(_LENGTH) for text in changed):
                anew = "; to train on, append a step of another name that trains the same"
            raise PipelineError(
                f"step {step.name!r} {stands} and the file has changed since: "
                f"{'; '.join(changed)}. Restore these values, or give another output_path{anew}"
            )
        if not state.finished:
            break
    return states


def _optimizers(values: dict) -> dict[str, str]:
    kinds = {"optimizer": values.get("optimizer")}
    for name in ("discriminator_options", "text_encoder_options"):
        if name in values:
            kinds[f"optimizer of {name}"] = values[name].get("optimizer", kinds["optimizer"])
    return kinds


def _differences(before: dict | None, now: dict, names: Iterable[str]) -> list[str]:
    """What is said otherwise of some names; nothing where it is not known what was said before."""
    now = json.loads(json.dumps(now))
    return [
        f"{_CONVERTED.get(name) or key_of(name) or name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(names if before else ())
        if before.get(name) != now.get(name)
    ]


def _moved(values: dict) -> dict:
    """Options as if the steps' folder, wherever it is and however it is spelled, were here."""
    folder = re.escape(json.dumps(str(values.get("ckpt_dir")))[1:-1])
    # Paths begin with it, or are KIND:PATH.
    return json.loads(re.sub(rf'([":]){folder}/', r"\1", json.dumps(values)))
