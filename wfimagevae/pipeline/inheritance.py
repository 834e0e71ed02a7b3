"""What finished steps leave to later ones, and whether they still follow from the file."""

from pathlib import Path

from wfimagevae.engine.checkpoint import list_checkpoints
from wfimagevae.options import Options
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.flags import image_size, parse_flags, step_flags, step_folder
from wfimagevae.pipeline.loading import LoadedPipeline
from wfimagevae.pipeline.networks import VaeFacts, network_config
from wfimagevae.pipeline.progress import (
    StepState,
    changed_network,
    changed_optimizers,
    changed_options,
    check_folders,
    read_state,
)
from wfimagevae.pipeline.steps import MergedStep


def step_options(loaded: LoadedPipeline, vae: VaeFacts, step: MergedStep) -> Options:
    """Every option of a step's training, by its task's parser, with what earlier steps leave it."""
    content = loaded.content
    units = vae.units(image_size(step, content)) if step.task == "vae" else None
    flags, _ = step_flags(step, content, loaded.document, loaded.parsers, units)
    flags |= _inherited(loaded, vae, step)
    return parse_flags(loaded.parsers[step.task], flags)


def _inherited(loaded: LoadedPipeline, vae: VaeFacts, step: MergedStep) -> Options:
    """The flags by which weights travel from finished steps."""
    before = loaded.steps[: step.index]
    same = [str(_last(loaded, other)) for other in before if other.task == step.task]
    flags: dict = {}
    if same:
        newest = same[::-1]
        flags = {"pretrained_model_name_or_path": newest[0], "weights_from": newest}
        if step.task == "vae":
            flags["model_config"] = None
    if step.task == "flow" and vae_source(loaded, step):
        folder = step_folder(loaded.content, step)
        flags["vae"] = f"{vae.name}:{folder / 'autoencoder'}"
        if step.settings.cache_latents:
            flags |= {"dataset": "latents", "data_path": str(folder / "latents")}
            flags |= {"captions": None, "fixed_prompt_prefix": None}
            if step.source.held_out:
                flags["eval_data_path"] = str(folder / "held_out_latents")
    return flags


def vae_source(loaded: LoadedPipeline, step: MergedStep) -> str | None:
    """The weights of the VAE that a flow step learns the latents of; None: pixels."""
    before = [other for other in loaded.steps[: step.index] if other.task == "vae"]
    return str(_last(loaded, before[-1])) if before else loaded.content.model.vae.pretrained


def _last(loaded: LoadedPipeline, step: MergedStep) -> Path:
    """A step's last checkpoint; before it has one, where its checkpoints go."""
    folder = step_folder(loaded.content, step)
    saved = list_checkpoints(folder)
    return saved[-1] if saved else folder


def read_states(loaded: LoadedPipeline, vae: VaeFacts) -> list[StepState]:
    """Where each step stands.

    Raises:
        PipelineError: the output holds steps that the file does not have at that place, or that
            it says otherwise than they were trained.
        ValueError: a checkpoint cannot be read.
    """
    content = loaded.content
    states = [read_state(step_folder(content, step)) for step in loaded.steps]
    check_folders(loaded.output, states)
    for step, state in zip(loaded.steps, states, strict=True):
        changed = changed_network(state, network_config(content, vae, step.task))
        compare = changed_options if state.finished else changed_optimizers
        changed += compare(state, step_options(loaded, vae, step).values())
        if changed:
            stands = "is finished" if state.finished else "has begun"
            anew = "" if state.finished else f", or move {state.folder} away to begin it anew"
            raise PipelineError(
                f"step {step.name!r} {stands} and the file has changed since: "
                f"{'; '.join(changed)}. Restore these values, or give another output_path{anew}"
            )
        if not state.finished:
            break
    return states
