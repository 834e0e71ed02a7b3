"""A step's options and networks, on shapes alone: sizes and memory, before anything is built."""

import math
import warnings
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from wfimagevae.diffusion.guidance import Condition
from wfimagevae.engine.checkpoint import list_checkpoints
from wfimagevae.engine.cost import HeldBytes
from wfimagevae.engine.device import autocast
from wfimagevae.engine.options import OPTIMIZERS, TrainingOptions
from wfimagevae.files import DIFFUSERS, read_config, read_json
from wfimagevae.generate.autoencoders import load_diffusers
from wfimagevae.model.losses import LPIPSWithDiscriminator2D
from wfimagevae.model.modeling_aebase import autoencoder_class
from wfimagevae.model.text import open_text_encoder
from wfimagevae.model.weight_files import config_of, find_weights
from wfimagevae.pipeline.flags import step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS, ModelSection
from wfimagevae.pipeline.steps import Pipeline, Step
from wfimagevae.task.flow import build_generator, build_network, build_objective
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import FlowSpace, check_bucket_sizes
from wfimagevae.task.vae import build_vae, check_sizes
from wfimagevae.task.vae_options import VaeOptions

_CPU, _META = torch.device("cpu"), torch.device("meta")


class VaeFacts(NamedTuple):
    """What a plan needs to know of the autoencoder: it, on the meta device, and its name."""

    network: nn.Module
    name: str

    def config(self, pipeline: Pipeline, step: Step) -> dict:
        """The configuration that builds it again, with the SPADE that steps so far train."""
        steps = [*pipeline.before(step, "vae"), step]
        has_spade = any(other.settings.train_spade for other in steps)
        is_foreign = self.name.startswith(DIFFUSERS)
        own = dict(self.network.config) if is_foreign else self.network.own_config()
        return own | ({"spade": True} if has_spade else {})

    def latents(self, step: Step) -> int | None:
        """How many values an image's latent has in a step that trains it; None of others."""
        if step.task != "vae":
            return None
        side = step.size // self.network.spatial_factor
        return self.network.config.latent_channels * side**2


def vae_facts(model: ModelSection) -> VaeFacts:
    """A file's autoencoder; ValueError for no such model, or a configuration that it refuses."""
    section = model.vae
    name = section.name or OPTIONS["vae"].by_flag()["model_name"].default
    if (section.pretrained or "").startswith(DIFFUSERS):
        sketch = load_diffusers(section.pretrained.removeprefix(DIFFUSERS), "meta")
        sketch.network.spatial_factor = sketch.multiple
        return VaeFacts(sketch.network, section.pretrained)
    model_class = autoencoder_class(name, ("model.vae.pretrained: diffusers:PATH",))
    config = section.config
    if config is None and section.pretrained:
        config = config_of(find_weights(section.pretrained, fits=model_class.describes))
        if config is None:
            raise ValueError(f"{section.pretrained} has no config: give model.vae.config")
    with torch.device("meta"):
        return VaeFacts(model_class.from_config(config or {}), name)


def network_config(pipeline: Pipeline, vae: VaeFacts, step: Step) -> dict:
    """The registered name of a step's network and the content of its configuration."""
    if step.task == "vae":
        return {"name": vae.name} | vae.config(pipeline, step)
    flow = pipeline.content.model.flow
    return {"name": flow.name} | read_config(flow.config)


def step_options(pipeline: Pipeline, vae: VaeFacts, step: Step) -> TrainingOptions:
    """The options of a step's training, with the weights that earlier steps leave it."""
    flags = step_flags(pipeline, step, vae.latents(step))
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
    return next(reversed(list_checkpoints(folder)), folder)


class Parts(NamedTuple):
    """A step's networks on shapes alone, and what it does with them."""

    components: dict[str, nn.Module]
    averaged: nn.Module  # the network whose averages are kept
    others: list[nn.Module]  # that are held beside it
    updates: list[Callable[[], tuple[Tensor, dict]]]  # each player's: its loss, and what it logs
    draw: Callable[[int, int, int], object]  # shows so many images of a height and width
    note: str = ""  # what is not counted


def rehearse(
    pipeline: Pipeline, step: Step, options: TrainingOptions, vae: VaeFacts
) -> tuple[dict[str, nn.Module], set[str], str]:
    """A step's networks by component, of shapes alone, what it logs, and its memory in words.

    They are built and called as in its training, on tensors without content. Networks that do not
    fit, or images of sizes that they do not take, are a ValueError, shapes that do not meet a
    RuntimeError.
    """
    build = _vae_parts if step.task == "vae" else _flow_parts
    with FakeTensorMode(allow_non_fake_inputs=True), autocast(_CPU, options.mix_precision):
        parts = build(pipeline, step, options.changed(compile=False), vae)
        weights = (p for part in parts.components.values() for p in part.parameters())
        trained = {parameter for parameter in weights if parameter.requires_grad}
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        training, drawing, logged = HeldBytes(), HeldBytes(), set()
        for update in parts.updates:
            with training:
                loss, logs = update()
                loss.backward()
            logged |= logs.keys()
        # The largest batch of samples that validation or the pipeline draws.
        output, count = pipeline.content.output, options.eval_batch_size
        if step.task == "flow":
            count = min(count, max(options.eval_num_samples, options.eval_num_images))
        batches = [(count if options.eval_steps else 0, step.size, step.size)]
        if not output.no_samples and (output.test_image_address or step.task == "flow"):
            batches += [(1, *sides) for sides in output.sample_sizes or [(step.size, step.size)]]
        count, width, height = max(batches, key=math.prod)
        if count:
            with torch.no_grad(), drawing:
                parts.draw(count, height, width)
    # Weights, gradients, optimizer's moments and averages.
    values = sum(p.numel() for part in (parts.averaged, *parts.others) for p in part.parameters())
    values += (1 + OPTIMIZERS[options.optimizer]) * sum(p.numel() for p in trained)
    values += len(options.ema_decay) * parts.averaged.num_parameters() if options.ema else 0
    states, kept, drawn = (n / 2**30 for n in (4 * values, training.most, drawing.most))
    memory = f"{states + max(kept, drawn):.2f} GiB a process: {states:.2f} of states, {kept:.2f} "
    memory += "of activations"
    if count:
        memory += f", or {drawn:.2f} while {count} of {width}x{height} px are drawn"
    return parts.components, logged, memory + (f"; {parts.note}" if parts.note else "")


def _vae_parts(pipeline: Pipeline, step: Step, options: VaeOptions, vae: VaeFacts) -> Parts:
    config = vae.config(pipeline, step)
    changes = {"pretrained_model_name_or_path": None, "network_config": config}
    options = options.changed(**changes, disc_start=0)
    network, loss = _dry(lambda: (build_vae(options, _META), LPIPSWithDiscriminator2D(options)))
    sizes = [options.resolution, *(options.reduced_min_sizes or [])]
    check_sizes(options, [(size, size) for size in sizes], network, loss)
    components = {"encoder": network.encoder, "decoder": network.decoder}
    images = torch.empty(options.batch_size, 3, step.size, step.size)
    # Without what processes do together, as one of them makes the plan.
    updates = [lambda: loss.generator_loss(images, network(images), network.last_layer, 0)]
    if options.disc_weight > 0:
        components["discriminator"] = loss.discriminator
    if options.trains_discriminator:
        updates.append(lambda: loss.discriminator_loss(images, images))
    else:
        loss.discriminator.requires_grad_(False)

    def draw(count: int, *sides: int) -> None:
        factor = network.spatial_factor
        network(torch.empty(count, 3, *(max(side // factor, 1) * factor for side in sides)))

    return Parts(components, network, [loss], updates, draw)


def _flow_parts(pipeline: Pipeline, step: Step, options: FlowOptions, vae: VaeFacts) -> Parts:
    content, size, count = pipeline.content, step.size, options.batch_size
    # Latents of an earlier step's VAE or of a trained one, else pixels.
    shape, others = (3, size, size), []
    if pipeline.before(step, "vae") or content.model.vae.pretrained is not None:
        factor = vae.network.spatial_factor
        shape = (vae.network.config.latent_channels, size // factor, size // factor)
        model_class, config = type(vae.network), vae.config(pipeline, step)
        others += _dry(lambda: [model_class.from_config(config)])
    # It stands for a text encoder that is not loaded: only what sizes the network.
    keys, note = _text_keys(content.model)
    text = None if keys is None else SimpleNamespace(config_keys=keys)

    def condition(batch: dict) -> Condition:
        return network.null_condition(len(batch["position"]), _CPU)

    facts = {"space": "latent" if others else "pixel"}
    space = FlowSpace(shape, 0, itemgetter("sample"), None, facts, condition, text)
    (network,) = _dry(lambda: [build_network(options, space, _META)])
    sizes = [(side, side) for side in options.reduced_min_sizes]
    check_bucket_sizes(SimpleNamespace(sample_shape=(3, size, size), sizes=sizes), space, network)
    objective = build_objective(options, network, space)
    generator = build_generator(options, objective, space)
    for width, height in content.output.sample_sizes or []:
        generator.sample_size(height, width)

    def draw(count: int, *sides: int) -> None:
        sides = generator.sample_size(*sides)
        rows = count * (1 if options.guidance_scale == 1 else 2)  # guided ones are drawn twice
        null = network.null_condition(rows, _CPU)
        network(torch.empty(rows, shape[0], *sides), torch.empty(rows), null)
        for autoencoder in others:
            autoencoder.decode(torch.empty(count, shape[0], *sides))

    components, encoder = {"flow": network}, getattr(network, "text_encoder", None)
    components |= {"text_encoder": encoder} if encoder else {}
    for name, part in components.items():
        part.requires_grad_(name in step.trained)
    batch = {"sample": torch.empty(count, *shape), "position": list(range(count))}
    return Parts(components, network, others, [lambda: objective(batch, 0)], draw, note)


def _text_keys(model: ModelSection) -> tuple[dict | None, str]:
    """Configuration keys of the text encoder, without loading it, and what they leave open."""
    spec = model.text_encoder
    if not spec:
        return None, ""
    if spec == "bytes":
        return open_text_encoder(spec, "cpu", model.text_length).config_keys, ""
    path = Path(spec.partition(":")[2]) / "config.json"
    if not path.is_file():
        return None, f"{spec} is not on this machine: its layers are not counted"
    facts = read_json(path)
    facts |= facts.get("text_config") or {}
    width = facts.get("hidden_size") or facts.get("d_model")
    sizes = {"text_width": width, "pooled_width": facts.get("projection_dim") or width}
    note = f"the frozen text encoder {spec} comes on top"
    return {"text_encoder": "external", "text_length": model.text_length or 128, **sizes}, note


def _dry(build: Callable[[], Iterable[nn.Module]]) -> list[nn.Module]:
    """Networks whose tensors are shapes, as if on the CPU; inside a `FakeTensorMode`."""
    with unset_fake_temporarily(), _META, warnings.catch_warnings():
        # Weights are read, so that those which do not fit are found, and go nowhere.
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        networks = build()
    return [network.to_empty(device="cpu") for network in networks]
