"""The plan of a pipeline: what is done, and what each step would train, on what, how long."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch

from wfimagevae.dataset.open import build_image_data, open_images
from wfimagevae.dataset.options import LoaderOptions
from wfimagevae.dataset.shards.specs import expand_shards, is_remote
from wfimagevae.engine.checkpoint import list_checkpoints, whole_checkpoint
from wfimagevae.engine.optim import run_length
from wfimagevae.engine.options import (
    CheckpointOptions,
    DeviceOptions,
    LoggingOptions,
    TrainingOptions,
)
from wfimagevae.files import read_json, read_torch_file
from wfimagevae.model.losses.lpips_network import BACKBONES
from wfimagevae.model.losses.options import LossConfig
from wfimagevae.pipeline.flags import METRICS, read_flags, step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS, ModelSection, StepSection
from wfimagevae.pipeline.instead import in_words_of_file, key_of
from wfimagevae.pipeline.networks import VaeFacts, network_config, rehearse, step_options, vae_facts
from wfimagevae.pipeline.steps import Pipeline, PipelineError, Step
from wfimagevae.task.flow_options import FlowValidationOptions
from wfimagevae.task.flow_space import build_datasets
from wfimagevae.task.vae_options import VaeValidationOptions

_SAME = {
    "discriminator": "give all steps with gan_training the same disc_num_layers",
    "flow": "a flow goes on in the same space (pixels, or latents of the same VAE), and one with "
    "positions of its own (DiT) at the same img_size",
}
# Options that may change without another result; those of validation may, besides.
_GROUPS = (DeviceOptions, LoaderOptions, CheckpointOptions, LoggingOptions)
_GROUPS += (VaeValidationOptions, FlowValidationOptions)
_HARMLESS = {n for group in _GROUPS for n in group.model_fields if not n.startswith("eval_")}
_HARMLESS -= {"log_steps", "weights_from"}
_HARMLESS |= {"config", "exp_name", "wds_cache_dir", "max_bad_updates", "lpips_weights"}
_HARMLESS |= {"find_unused_parameters", "ddp_timeout", "eval_clip_model", "eval_fid"}
_HARMLESS |= {"compile", "compile_mode"}  # as is the device
_HARMLESS |= {"model_config"}  # its content is compared
NETWORK_FILE = "network.json"
_CONVERTED = {k.flag: f"{name}, as {k.flag}" for name, k in StepSection.keys().items() if k.unit}
_LENGTH = ("steps:", "n_epochs:", "max_steps:")  # keys of a step's length


class StepState(NamedTuple):
    """Where a step stands."""

    folder: Path
    checkpoint: Path | None = None  # its newest; None where it has not begun
    finished: bool = False
    options: dict | None = None  # what it was last trained with
    network: dict | None = None  # configuration of what it trains, where that was kept


def read_state(folder: Path) -> StepState:
    """Where the step of a folder stands; ValueError if none of its checkpoints can be read."""
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
    """Where each step stands; ValueError for a checkpoint that cannot be read.

    Steps in the output that do not follow from this file, or that it says otherwise than they were
    trained, are a PipelineError.
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
        changed += _changes(state, step_options(pipeline, vae, step).values())
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


def _changes(state: StepState, now: dict) -> list[str]:
    """How a step's options differ from those that it was trained with, as far as that counts."""
    before = state.options or {}
    if not state.finished:  # its optimizers' state is no other one's
        before, now = _optimizers(before), _optimizers(now)
        return _differences(state.options and before, now, before)
    before, now = _moved(before), _moved(now)
    harmless = _HARMLESS | ({"log_steps"} if not now.get("stop_metric") else set())
    # Validations count only where they change a learning rate.
    if '"lr_schedule": "plateau"' not in json.dumps([before, now]):
        harmless |= {name for name in before if name.startswith("eval_")}
    return _differences(before, now, before.keys() - harmless)


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


def describe_plan(pipeline: Pipeline) -> list[str]:
    """A checked file's plan, in lines; only shapes are built, and nothing is written.

    A PipelineError has everything that only data, networks and the output show to be wrong.
    """
    document = pipeline.document
    states: list[StepState] = []
    try:
        vae = vae_facts(pipeline.content.model)
    except (ValueError, TypeError, OSError) as error:
        document.report(("model", "vae"), f"model.vae: {in_words_of_file(str(error))}")
        vae = vae_facts(ModelSection())  # the flow's problems are told all the same
    if not document.problems:
        states = read_states(pipeline, vae)
    lines = [f"{document.path}: {len(pipeline.steps)} steps, into {pipeline.output}"]
    # Flags that were given over the file, and the steps that have them.
    shown = []
    for flag, value in pipeline.flags.items():
        names = [s.name for s in pipeline.steps if flag in OPTIONS[s.task].by_flag()]
        whom = "all steps" if len(names) == len(pipeline.steps) else ", ".join(names)
        words = value if isinstance(value, list | tuple) else [value]
        shown.append(f"--{flag} {' '.join(map(str, words))} ({whom})")
    lines += [f"over the file, from the command line: {'; '.join(shown)}"] if shown else []
    lines.append(
        "memory: weights, gradients, optimizer states and averages by count, and the most that "
        "forward and backward hold of one micro-batch, or samples while they are drawn if that is "
        "more, by a dry run on shapes; without caches and kernels' workspace"
    )
    # Component -> step that trained it last, and the shapes of its weights.
    weights: dict[str, tuple[str, dict]] = {}
    for step, state in zip_longest(pipeline.steps, states):
        if step.task == "vae" and not states:
            continue  # the autoencoder cannot be built
        try:
            lines += ["", *_describe_step(pipeline, vae, step, state, weights)]
        except (ValueError, OSError) as error:
            text = in_words_of_file(str(error))
            document.report(step.place, f"step {step.name!r}: {text}")
        except RuntimeError as error:  # of a dry run: shapes that do not meet
            text = f"its networks do not take images of {step.size} px ("
            text += f"{str(error).splitlines()[0]}); write another img_size, or other sizes in "
            document.report(step.place, f"step {step.name!r}: {text}model.*.config")
    document.check()
    return lines


def _describe_step(
    pipeline: Pipeline, vae: VaeFacts, step: Step, state: StepState | None, weights: dict
) -> list[str]:
    """A step's lines of the plan; ValueError for what its training would refuse."""
    settings, title = step.settings, f"{step.index + 1}. {step.name}"
    options = OPTIONS[step.task](**step_flags(pipeline, step, vae.latents(step)))
    # Its networks, which go on with what earlier steps trained.
    components, logged, memory = rehearse(pipeline, step, options, vae)
    for component in components.keys() & _SAME.keys():
        shapes = {n: tuple(v.shape) for n, v in components[component].state_dict().items()}
        source, before = weights.get(component, (step.name, shapes))
        if wrong := [n for n in before | shapes if before.get(n) != shapes.get(n)]:
            was, now = (known.get(wrong[0], "missing") for known in (before, shapes))
            raise ValueError(
                f"the {component} of step {source} does not fit: its {wrong[0]} is {was}, here "
                f"{now}; {_SAME[component]}"
            )
        weights[component] = step.name, shapes
    if options.stop_metric and options.stop_metric not in logged:
        names = {logged_name: name for name, (logged_name, _) in METRICS.items()}
        known = sorted(names.get(name, name) for name in logged)
        name, document = settings.transition_on.metric, pipeline.document
        text = f"unreachable: this step logs no {name}, but {', '.join(known)}"
        document.report(step.origin(document, "transition_on", "metric"), text)
    if state and state.finished:
        return [f"{title}: finished, {state.checkpoint}"]
    # What is trained and frozen, and where its weights come from.
    counts = {n: sum(p.numel() for p in part.parameters()) for n, part in components.items()}
    if "text_encoder" in counts:
        counts["flow"] -= counts["text_encoder"]
    learns = {name: count for name, count in counts.items() if name in step.trained}
    frozen = [f"{n} {c:,}" for n, c in counts.items() if n not in step.trained]
    frozen += sorted(step.frozen - counts.keys())
    if step.task == "vae" and settings.train_spade is False:
        frozen += ["the decoder's SPADE layers"] if vae.config(pipeline, step).get("spade") else []
    trained = ", ".join(f"{name} {count:,}" for name, count in learns.items())
    lines = [
        f"{title}: {settings.description}" if settings.description else title,
        f"   trains {trained}: {sum(learns.values()):,} parameters",
        *([f"   frozen {', '.join(frozen)}"] if frozen else []),
        *_starts(pipeline, step, state),
        *_data_and_length(step, options),
    ]
    # Rates and weights.
    average = f"average {options.ema_decay}" if options.ema else "no average"
    lines.append(f"   {_rate(options)}, precision {options.mix_precision}, {average}")
    if "discriminator" in step.trained:
        own = {"lr": options.lr * options.disc_lr_ratio} | options.discriminator_options
        lines.append(f"   its discriminator: {_rate(options.changed(**own))}")
    if step.task == "flow" and options.text_encoder_options:
        own = options.changed(**options.text_encoder_options)
        lines.append(f"   its text encoder: {_rate(own)}")
    lines += [f"   {text}" for text in read_flags(step, vae.latents(step))[1]]
    lines += _weights(options) if step.task == "vae" else []
    return [*lines, f"   memory about {memory}"]


def _starts(pipeline: Pipeline, step: Step, state: StepState | None) -> list[str]:
    """Where a step's weights come from."""
    if state and state.checkpoint:
        return [f"   goes on from {state.checkpoint}"]
    before, model = pipeline.before(step, step.task), pipeline.content.model
    source = getattr(model, step.task).pretrained or "nothing: it is built anew"
    if before:
        averaged = before[-1].settings.use_ema and step.settings.use_ema
        average = ", raw weights and their average" if averaged else ""
        source = f"step {before[-1].name}{average}"
    lines = [f"   the {'VAE' if step.task == 'vae' else 'flow'} starts from {source}"]
    if step.settings.gan_training:
        critics = [other.name for other in before if other.settings.gan_training]
        source = f"step {critics[-1]}" if critics else "nothing: it is built anew"
        lines.append(f"   the discriminator starts from {source}")
    if step.task == "flow":
        vaes = pipeline.before(step, "vae")
        source = f"step {vaes[-1].name}" if vaes else model.vae.pretrained
        how = "cached first" if step.settings.cache_latents else "encoded while training"
        latents = f"latents of the VAE of {source}, shift and scale measured first, {how}"
        lines.append(f"   learns {latents if source else 'pixels: there is no VAE before it'}")
    return lines


def _data_and_length(step: Step, options: TrainingOptions) -> list[str]:
    """What a step trains on and is validated on; how many updates it makes, if they suffice."""
    count, world = _count(step, options), int(os.environ.get("WORLD_SIZE", 1))
    name = step.source.place[-1] if step.source else options.dataset
    held_out = ", ".join(step.source.section.held_out) if step.source else ""
    images = "counted when training begins" if count is None else f"{count:,} images"
    validation = f"validated on {held_out}" if held_out and options.eval_steps else "no validation"
    batch = options.batch_size * options.grad_accum_steps * world
    update = f"of {options.batch_size} x {options.grad_accum_steps} x {world} = {batch} images"
    steps = options.max_steps
    length = f"{options.epochs} epochs of updates" if steps is None else f"{steps:,} updates"
    if steps is None and count is not None:
        steps, _ = run_length(options, count, world)
        length = f"{options.epochs} epochs = {steps:,} updates"
    lines = [f"   data {name}: {images}, {step.size} px; {validation}", f"   {length} {update}"]
    if not options.stop_metric:
        return lines
    window = options.stop_window
    if steps is not None and steps // options.log_steps < window:
        raise PipelineError(
            f"unreachable transition: its mean is over {window} progress lines, and {steps} "
            f"updates with log_interval {options.log_steps} have "
            f"{steps // options.log_steps}; lower transition_on.window"
        )
    ends = f"{options.stop_metric} is below {options.stop_below:g}, the mean of {window}"
    return [*lines, f"   ends earlier once {ends} progress lines"]


def _count(step: Step, options: TrainingOptions) -> int | None:
    """Opens a step's data; images of an epoch, None where counting them would download them."""
    if step.task == "vae":
        if options.eval_steps and not _is_away(options.eval_image_path, options):
            open_images(options, options.eval_image_path)
        if _is_away(options.image_path, options):
            return None
        return len(build_image_data(options, options.image_path))
    if _is_away(options.eval_data_path, options):
        options = options.changed(eval_steps=0)
    if options.dataset != "images" or not _is_away(options.data_path, options):
        return len(build_datasets(options)[0])
    held_out = options.eval_data_path if options.eval_steps else None
    if held_out and not options.better_captions:  # which may be of training images alone
        plain = options.changed(data_weights=None, aspect_buckets=0, reduced_min_sizes=[])
        build_image_data(plain, held_out)
    return None


def _is_away(sources: Sequence[str] | None, options: TrainingOptions) -> bool:
    remote = [path for path in sources or [] if is_remote(path)]
    return bool([expand_shards(path, options.allow_pipe) for path in remote])


def _rate(options: TrainingOptions) -> str:
    """An optimizer, its rate, and what becomes of that."""
    kind, gamma, updates = options.lr_schedule, options.lr_gamma, options.lr_step_updates
    every = "every update" if updates == 1 else f"every {updates:,} updates"
    text = f"{options.optimizer}, lr {options.lr:g} {kind}"
    if kind in ("step", "exponential"):
        text += f", times {gamma:g} {every}" + (", smoothly" if kind == "exponential" else "")
    elif kind == "plateau":
        text += f", times {gamma:g} after {options.plateau_patience} validations in a row without "
        text += "a better score"
    if kind != "constant":
        text += f", down to {options.min_lr_ratio:g} of it"
    warmup = options.warmup_steps
    return text + (f", after a warm-up of {warmup:,} updates" if warmup else "")


def _weights(options: TrainingOptions) -> list[str]:
    """A VAE step's loss weights that are not 0, and what LPIPS fetches when it begins."""
    idle = ["adaptive_weight"] + ([] if options.wavelet_loss else ["wavelet_weight"])
    names = [n for n in LossConfig.model_fields if n.endswith("_weight") and n not in idle]
    text = ", ".join(f"{n} {getattr(options, n):g}" for n in names if getattr(options, n))
    if options.disc_weight:
        text += ", the adversarial one " + ("adaptive" if options.adaptive_weight else "constant")
    lines = [f"   weights for sums: {text}"]
    url, folder = BACKBONES["vgg"], Path(torch.hub.get_dir()) / "checkpoints"
    is_there = options.lpips_weights or (folder / url.rpartition("/")[2]).is_file()
    if options.perceptual_weight and not is_there:
        lines.append(
            f"   needs a network when it begins: LPIPS downloads {url} into {folder}; "
            "options: {lpips_weights: FILE} names a copy"
        )
    return lines
