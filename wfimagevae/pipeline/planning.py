"""The plan of a pipeline: what each step would train, on what, for how long, in what memory."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory

from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.text import open_text_encoder
from wfimagevae.pipeline.components import DECODER, DISCRIMINATOR, ENCODER, FLOW, TEXT_ENCODER
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.flags import image_size, parse_flags, step_flags
from wfimagevae.pipeline.footprint import Footprint, flow_footprint, vae_footprint
from wfimagevae.pipeline.loading import LoadedPipeline
from wfimagevae.pipeline.networks import VaeFacts, vae_facts, write_configs
from wfimagevae.pipeline.sizes import parse_sizes
from wfimagevae.pipeline.steps import MergedStep
from wfimagevae.pipeline.units import Conversion
from wfimagevae.task.flow_data import build_datasets
from wfimagevae.task.image_data import build_image_data

_GIB = 2**30
_ORDER = (ENCODER, DECODER, DISCRIMINATOR, FLOW, TEXT_ENCODER)


def describe_plan(loaded: LoadedPipeline, finished: Sequence[bool] = ()) -> list[str]:
    """The plan in lines; nothing is built but shapes, and nothing is written into the output.

    Args:
        loaded: A checked file.
        finished: Of each step; those that are need no plan.

    Raises:
        PipelineError: everything that only data and networks show to be wrong.
    """
    with TemporaryDirectory() as folder:  # for configurations that the YAML itself holds
        content = loaded.content.model_copy(
            update={"output": loaded.content.output.model_copy(update={"output_path": folder})}
        )
        write_configs(content)
        left = [not done for done in finished] or [True] * len(loaded.steps)
        return _describe(replace(loaded, content=content), loaded.output, left)


def _describe(loaded: LoadedPipeline, output: Path, left: list[bool]) -> list[str]:
    vae = vae_facts(loaded.content)
    lines = [
        f"{loaded.document.path}: {len(loaded.steps)} steps, into {output}",
        "memory: weights, gradients, optimizer states and averages by count, and what backward "
        "keeps of one micro-batch by a dry run on shapes; without caches and kernels' workspace",
    ]
    for step in compress(loaded.steps, left):
        try:
            lines += ["", *_describe_step(loaded, vae, step)]
        except (ValueError, OSError) as error:
            loaded.document.report(step.place, f"step {step.name!r}: {error}")
    loaded.document.check()
    return lines


def _describe_step(loaded: LoadedPipeline, vae: VaeFacts, step: MergedStep) -> list[str]:
    content = loaded.content
    units = vae.units(image_size(step, content)) if step.task == "vae" else None
    flags, conversions = step_flags(step, content, loaded.document, loaded.parsers, units)
    options = parse_flags(loaded.parsers[step.task], flags)
    size = image_size(step, content)
    footprint = _footprint(loaded, vae, step, options | {"resolution": size})
    title = f"{step.index + 1}. {step.name}"
    described = step.settings.description
    return [
        f"{title}: {described}" if described else title,
        *_networks(step, footprint),
        *_starts(loaded, step),
        *_data_and_length(loaded, step, options),
        *_rates(options),
        *_weights(options, conversions, step),
        _memory(footprint),
    ]


def _footprint(loaded: LoadedPipeline, vae: VaeFacts, step: MergedStep, options: dict) -> Footprint:
    if step.task == "vae":
        config = {k: v for k, v in vae.network.config.items() if not k.startswith("_")}
        model_class = ModelRegistry.get_model(vae.name)
        return vae_footprint(options, lambda: model_class.from_config(config), step.trained)
    size = options["resolution"]
    shape = (3, size, size)
    if learns_latents(loaded, step):
        factor, channels = vae.network.spatial_factor, vae.network.config.latent_dim
        shape = (channels, size // factor, size // factor)
    keys, note = _text_keys(loaded)
    found = flow_footprint(options, shape, keys, step.trained)
    _check_sample_sizes(loaded, size // shape[-1] * found.size_multiple)
    if note:
        found.notes.append(note)
    if learns_latents(loaded, step) and not step.settings.cache_latents:
        found.states += 4 * vae.encoder
    return found


def _check_sample_sizes(loaded: LoadedPipeline, multiple: int) -> None:
    for size in parse_sizes(loaded.content.output.sample_sizes or []):
        if any(side % multiple for side in size):
            raise ValueError(
                f"sample size {size[0]}x{size[1]}: sides of this flow's pictures are multiples of "
                f"{multiple}"
            )


def learns_latents(loaded: LoadedPipeline, step: MergedStep) -> bool:
    """Whether a flow step learns latents: of an earlier step's VAE, or of a trained one."""
    before = any(other.task == "vae" for other in loaded.steps[: step.index])
    return before or loaded.content.model.vae.pretrained is not None


def _text_keys(loaded: LoadedPipeline) -> tuple[dict | None, str]:
    """Configuration keys of the text encoder, without loading it, and what they leave open."""
    model = loaded.content.model
    spec = model.text_encoder
    if not spec:
        return None, ""
    if spec == "bytes":
        return open_text_encoder(spec, "cpu", model.text_length).config_keys, ""
    path = Path(spec.partition(":")[2]) / "config.json"
    if not path.is_file():
        return None, f"{spec} is not on this machine: its layers are not counted"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts |= facts.get("text_config") or {}
    width = facts.get("hidden_size") or facts.get("d_model")
    sizes = {"text_width": width, "pooled_width": facts.get("projection_dim") or width}
    note = f"the frozen text encoder {spec} comes on top"
    return {"text_encoder": "external", "text_length": model.text_length or 128, **sizes}, note


def _networks(step: MergedStep, footprint: Footprint) -> list[str]:
    counts = footprint.parameters
    present = [name for name in _ORDER if name in counts]
    trained = [f"{name} {counts[name]:,}" for name in present if name in step.trained]
    frozen = [f"{name} {counts[name]:,}" for name in present if name not in step.trained]
    frozen += [name for name in _ORDER if name in step.frozen and name not in counts]
    total = sum(counts[name] for name in present if name in step.trained)
    lines = [f"   trains {', '.join(trained)}: {total:,} parameters"]
    return lines + ([f"   frozen {', '.join(frozen)}"] if frozen else [])


def _starts(loaded: LoadedPipeline, step: MergedStep) -> list[str]:
    """Where a step's weights come from."""
    before = [other for other in loaded.steps[: step.index] if other.task == step.task]
    pretrained = getattr(loaded.content.model, step.task).pretrained
    average = ""
    if before and before[-1].settings.use_ema and step.settings.use_ema:
        average = ", raw weights and their average"
    network = "VAE" if step.task == "vae" else "flow"
    fresh = pretrained or "nothing: it is built anew"
    first = f"the {network} starts from "
    first += f"step {before[-1].name}{average}" if before else fresh
    lines = [f"   {first}"]
    if step.settings.gan_training:
        critics = [other.name for other in before if other.settings.gan_training]
        source = f"step {critics[-1]}" if critics else "nothing: it is built anew"
        lines.append(f"   the discriminator starts from {source}")
    if step.task == "flow":
        vaes = [other.name for other in loaded.steps[: step.index] if other.task == "vae"]
        source = f"step {vaes[-1]}" if vaes else loaded.content.model.vae.pretrained
        how = "cached first" if step.settings.cache_latents else "encoded while training"
        told = f"latents of the VAE of {source}, shift and scale measured first, {how}"
        lines.append(f"   learns {told if source else 'pixels: there is no VAE before it'}")
    return lines


def _data_and_length(loaded: LoadedPipeline, step: MergedStep, options: dict) -> list[str]:
    count = _count(step, options)
    world = int(os.environ.get("WORLD_SIZE", 1))
    size = image_size(step, loaded.content)
    name = step.source.name if step.source else options["dataset"]
    held_out = ", ".join(step.source.held_out) if step.source else ""
    shown = "counted when training begins" if count is None else f"{count:,} images"
    validates = held_out and options["eval_steps"]
    validation = f"validated on {held_out}" if validates else "no validation"
    lines = [f"   data {name}: {shown}, {size} px; {validation}"]
    batch = options["batch_size"] * options["grad_accum_steps"] * world
    told = f"of {options['batch_size']} x {options['grad_accum_steps']} x {world} = {batch} images"
    steps = options["max_steps"]
    if steps is None and count is not None:
        epoch = min(count / batch, options["max_steps_per_epoch"] or math.inf)
        steps = math.ceil(options["epochs"] * epoch)
        lines.append(f"   {options['epochs']} epochs = {steps:,} updates {told}")
    elif steps is None:
        lines.append(f"   {options['epochs']} epochs of updates {told}")
    else:
        lines.append(f"   {steps:,} updates {told}")
    return lines + _ending(options, steps)


def _ending(options: dict, steps: int | None) -> list[str]:
    if not options["stop_metric"]:
        return []
    window = options["stop_window"]
    if steps is not None and steps // options["log_steps"] < window:
        raise PipelineError(
            f"unreachable transition: its mean is over {window} progress lines, and {steps} "
            f"updates with log_interval {options['log_steps']} have "
            f"{steps // options['log_steps']}; lower transition_on.window"
        )
    return [
        f"   ends earlier once {options['stop_metric']} is below {options['stop_below']:g}, the "
        f"mean of {window} progress lines"
    ]


def _count(step: MergedStep, options: dict) -> int | None:
    """Images of an epoch; None where counting them would download them."""
    if step.source and any("://" in p or p.startswith("pipe:") for p in step.source.paths):
        return None
    if step.task == "vae":
        return len(build_image_data(options, options["image_path"]))
    return len(build_datasets(options | {"eval_steps": 0})[0])


def _rates(options: dict) -> list[str]:
    schedule = options["lr_schedule"]
    ending = f" down to {options['min_lr_ratio']:g} of it" if schedule != "constant" else ""
    line = f"   {options['optimizer']}, lr {options['lr']:g} {schedule}{ending}"
    line += f", precision {options['mix_precision']}"
    line += f", average {options['ema_decay']}" if options["ema"] else ", no average"
    lines = [line]
    for name in ("discriminator", "text_encoder"):
        if own := options.get(f"{name}_options"):
            told = ", ".join(f"{key} {value}" for key, value in own.items())
            lines.append(f"   its {name.replace('_', ' ')}: {told}")
    return lines


def _weights(options: dict, conversions: list[Conversion], step: MergedStep) -> list[str]:
    lines = [f"   {conversion}" for conversion in conversions]
    if step.task == "vae":
        names = ("rec_weight", "perceptual_weight", "mse_weight", "kl_weight", "disc_weight")
        told = ", ".join(f"{name} {options[name]:g}" for name in names)
        adaptive = "adaptive" if options["adaptive_weight"] else "constant"
        told += f" ({adaptive})" if options["disc_weight"] else ""
        lines.append(f"   weights for sums: {told}")
    return lines


def _memory(footprint: Footprint) -> str:
    states, activations = footprint.states / _GIB, footprint.activations / _GIB
    notes = "".join(f"; {note}" for note in footprint.notes)
    return (
        f"   memory about {states + activations:.2f} GiB a process: {states:.2f} of states, "
        f"{activations:.2f} of activations{notes}"
    )
