"""The plan of a pipeline: what each step would train, on what, for how long, in what memory."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wfimagevae.engine.options import TrainingOptions
from wfimagevae.model.losses.lpips_network import BACKBONES
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.text import open_text_encoder
from wfimagevae.model.weight_files import find_weights
from wfimagevae.pipeline.components import DECODER, DISCRIMINATOR, ENCODER, FLOW, TEXT_ENCODER
from wfimagevae.pipeline.flags import image_size, parse_flags, step_flags
from wfimagevae.pipeline.footprint import Footprint, flow_footprint, vae_footprint
from wfimagevae.pipeline.inheritance import read_states
from wfimagevae.pipeline.loading import LoadedPipeline
from wfimagevae.pipeline.networks import VaeFacts, vae_facts, write_configs
from wfimagevae.pipeline.planned_data import data_and_length
from wfimagevae.pipeline.progress import StepState
from wfimagevae.pipeline.schema import ModelSection
from wfimagevae.pipeline.sizes import parse_sizes
from wfimagevae.pipeline.steps import MergedStep
from wfimagevae.pipeline.units import Conversion

_GIB = 2**30
# Loss terms that are named only where a step has them.
_RARE = ("color_weight", "histogram_weight", "contrast_weight", "mmd_weight", "r1_weight")
_SAME = {
    DISCRIMINATOR: "give all steps with gan_training the same disc_num_layers",
    FLOW: "a flow goes on in the same space (pixels, or latents of the same VAE), and one with "
    "positions of its own (DiT) at the same img_size",
}
_ORDER = (ENCODER, DECODER, DISCRIMINATOR, FLOW, TEXT_ENCODER)


@dataclass
class _Plan:
    """What the descriptions of all steps share.

    Attributes:
        loaded: The file; configurations that it holds stand in a temporary folder.
        vae: Its autoencoder; the default one where the file's cannot be built.
        states: Where the steps stand.
        weights: Component -> step that trained it last, and the shapes of its weights.
        dry_runs: Of networks on shapes, to be used again.
    """

    loaded: LoadedPipeline
    vae: VaeFacts
    states: list[StepState]
    weights: dict[str, tuple[str, dict]] = field(default_factory=dict)
    dry_runs: dict = field(default_factory=dict)


def describe_plan(loaded: LoadedPipeline) -> list[str]:
    """The plan in lines; nothing is built but shapes, and nothing is written into the output.

    Args:
        loaded: A checked file.

    Raises:
        PipelineError: everything that only data, networks and the output show to be wrong.
    """
    vae = _open_vae(loaded)
    states = read_states(loaded, vae) if vae else []
    with TemporaryDirectory() as folder:  # for configurations that the YAML itself holds
        content = loaded.content.model_copy(
            update={"output": loaded.content.output.model_copy(update={"output_path": folder})}
        )
        write_configs(content)
        there = replace(loaded, content=content)
        if vae is None:  # the flow's problems are told all the same
            usual = content.model_copy(update={"model": ModelSection()})
            return _describe(_Plan(there, vae_facts(usual), []), loaded.output)
        return _describe(_Plan(there, vae, states), loaded.output)


def _open_vae(loaded: LoadedPipeline) -> VaeFacts | None:
    """The file's autoencoder; reports why it cannot be built."""
    try:
        return vae_facts(loaded.content)
    except (ValueError, TypeError, OSError) as error:
        loaded.document.report(("model", "vae"), f"model.vae: {error}")
        return None


def _describe(plan: _Plan, output: Path) -> list[str]:
    loaded = plan.loaded
    lines = [
        f"{loaded.document.path}: {len(loaded.steps)} steps, into {output}",
        "memory: weights, gradients, optimizer states and averages by count, and what backward "
        "keeps of one micro-batch by a dry run on shapes; without caches and kernels' workspace",
    ]
    for step in loaded.steps:
        if step.task == "vae" and not plan.states:
            continue
        try:
            lines += ["", *_describe_step(plan, step)]
        except (ValueError, OSError) as error:
            loaded.document.report(step.place, f"step {step.name!r}: {error}")
        except RuntimeError as error:  # of a dry run: shapes that do not meet
            size = image_size(step, loaded.content)
            reason = str(error).splitlines()[0]
            loaded.document.report(
                step.place,
                f"step {step.name!r}: its networks do not take images of {size} px ({reason}); "
                "write another img_size, or other sizes in model.*.config",
            )
    loaded.document.check()
    return lines


def _describe_step(plan: _Plan, step: MergedStep) -> list[str]:
    loaded, content = plan.loaded, plan.loaded.content
    state = plan.states[step.index] if plan.states else None
    units = plan.vae.units(image_size(step, content)) if step.task == "vae" else None
    flags, conversions = step_flags(step, content, loaded.document, loaded.parsers, units)
    options = parse_flags(loaded.parsers[step.task], flags)
    size = image_size(step, content)
    footprint = _footprint(plan, step, options.changed(resolution=size))
    _check_weights(plan, step, footprint)
    title = f"{step.index + 1}. {step.name}"
    if state and state.finished:
        return [f"{title}: finished, {state.checkpoint}"]
    _check_networks(plan, step, options)
    described = step.settings.description
    return [
        f"{title}: {described}" if described else title,
        *_networks(step, footprint),
        *_starts(loaded, step, state),
        *data_and_length(loaded, step, options),
        *_rates(options, step),
        *_weights(options, conversions, step),
        _memory(footprint),
    ]


def _check_networks(plan: _Plan, step: MergedStep, options: TrainingOptions) -> None:
    """What a step's training would refuse of its networks when it begins.

    Raises:
        ValueError: a model that is of another kind, or losses that contradict each other.
    """
    loaded = plan.loaded
    if step.task == "vae":
        spade = step.settings.train_spade
        if spade is not None and bool(plan.vae.network.config.get("spade")) != spade:
            loaded.document.report(
                step.origin(loaded.document, "train_spade"),
                f"train_spade: {str(spade).lower()} and a model of the other kind: SPADE belongs "
                "to the architecture; write it as model.vae.config.spade",
            )
    elif pretrained := loaded.content.model.flow.pretrained:
        try:
            find_weights(pretrained)
        except (ValueError, OSError) as error:
            loaded.document.report(("model", "flow", "pretrained"), str(error))


def _check_weights(plan: _Plan, step: MergedStep, footprint: Footprint) -> None:
    """Raises ValueError where the weights of an earlier step do not fit a step's network."""
    for component, shapes in footprint.shapes.items():
        source, before = plan.weights.get(component, (step.name, shapes))
        wrong = [name for name in before | shapes if before.get(name) != shapes.get(name)]
        if wrong:
            was, now = before.get(wrong[0], "missing"), shapes.get(wrong[0], "missing")
            raise ValueError(
                f"the {component} of step {source} does not fit: its {wrong[0]} is {was}, here "
                f"{now}; {_SAME[component]}"
            )
        plan.weights[component] = (step.name, shapes)


def _footprint(plan: _Plan, step: MergedStep, options: TrainingOptions) -> Footprint:
    loaded, vae = plan.loaded, plan.vae
    if step.task == "vae":
        model_class = ModelRegistry.get_model(vae.name)
        build = partial(model_class.from_config, vae.config)
        return vae_footprint(options, build, step.trained, plan.dry_runs)
    size = options.resolution
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


def _starts(loaded: LoadedPipeline, step: MergedStep, state: StepState | None) -> list[str]:
    """Where a step's weights come from."""
    if state and state.checkpoint:
        return [f"   goes on from {state.checkpoint}"]
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


def _rates(options: TrainingOptions, step: MergedStep) -> list[str]:
    line = f"   {_rate(options)}, precision {options.mix_precision}"
    line += f", average {options.ema_decay}" if options.ema else ", no average"
    lines = [line]
    if DISCRIMINATOR in step.trained:
        own = {"lr": options.lr * options.disc_lr_ratio} | options.discriminator_options
        lines.append(f"   its discriminator: {_rate(options.changed(**own))}")
    if own := getattr(options, "text_encoder_options", None):
        lines.append(f"   its text encoder: {_rate(options.changed(**own))}")
    return lines


def _rate(options: TrainingOptions) -> str:
    """An optimizer, its rate, and what becomes of that."""
    kind, gamma, updates = options.lr_schedule, options.lr_gamma, options.lr_step_updates
    every = "every update" if updates == 1 else f"every {updates:,} updates"
    told = {
        "step": f", times {gamma:g} {every}",
        "exponential": f", times {gamma:g} {every}, smoothly",
        "plateau": f", times {gamma:g} after {options.plateau_patience} validations in a row "
        "without a better score",
    }.get(kind, "")
    told += f", down to {options.min_lr_ratio:g} of it" if kind != "constant" else ""
    warmup = options.warmup_steps
    told += f", after a warm-up of {warmup:,} updates" if warmup else ""
    return f"{options.optimizer}, lr {options.lr:g} {kind}{told}"


def _weights(
    options: TrainingOptions, conversions: list[Conversion], step: MergedStep
) -> list[str]:
    lines = [f"   {conversion}" for conversion in conversions]
    if step.task == "vae":
        names = ("rec_weight", "perceptual_weight", "mse_weight", "kl_weight", "disc_weight")
        told = ", ".join(f"{name} {getattr(options, name):g}" for name in names)
        adaptive = "adaptive" if options.adaptive_weight else "constant"
        told += f" ({adaptive})" if options.disc_weight else ""
        more = ["wavelet_weight"] if options.wavelet_loss else []
        more += [name for name in _RARE if getattr(options, name)]
        told += "".join(f", {name} {getattr(options, name):g}" for name in more)
        lines.append(f"   weights for sums: {told}")
        if options.perceptual_weight and not options.lpips_weights:
            lines += _download()
    return lines


def _download() -> list[str]:
    """What LPIPS fetches when a step begins, unless it is there."""
    url = BACKBONES["vgg"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if (folder / url.rpartition("/")[2]).is_file():
        return []
    return [
        f"   needs a network when it begins: LPIPS downloads {url} into {folder}; "
        "options: {lpips_weights: FILE} names a copy"
    ]


def _memory(footprint: Footprint) -> str:
    states, activations = footprint.states / _GIB, footprint.activations / _GIB
    notes = "".join(f"; {note}" for note in footprint.notes)
    return (
        f"   memory about {states + activations:.2f} GiB a process: {states:.2f} of states, "
        f"{activations:.2f} of activations{notes}"
    )
