"""GLIDE's fine-tuning: one player, who learns the noise in captioned images, small or large."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wfimagevae.diffusion.guidance import Condition
from wfimagevae.engine.checkpoint import Part
from wfimagevae.engine.distributed import World
from wfimagevae.engine.run import Watcher
from wfimagevae.engine.seeding import sample_noise, sample_uniforms, stable_hash
from wfimagevae.engine.train import run_training
from wfimagevae.files import read_config, read_torch_file
from wfimagevae.generate.generator import FlowGenerator, Progress
from wfimagevae.generate.generator_files import download_glide, load_generator
from wfimagevae.generate.options import GeneratorOptions, SamplingOptions, UpsamplerOptions
from wfimagevae.generate.two_stages import TwoStageGenerator
from wfimagevae.model.clip import TokensAndClip
from wfimagevae.model.flow.velocity_model import VelocityModel, build_velocity_model
from wfimagevae.model.glide.glide import Glide, part_of, start_from_pixels
from wfimagevae.model.weight_files import config_of, find_weights
from wfimagevae.objective.noise_prediction import NoisePrediction
from wfimagevae.pictures.grid import sample_grid, save_png
from wfimagevae.pictures.pixels import from_uint8, to_uint8
from wfimagevae.task.flow import FlowTask, assemble
from wfimagevae.task.flow_space import (
    FlowSpace,
    build_datasets,
    check_bucket_sizes,
    open_space,
)
from wfimagevae.task.flow_validation import FlowValidator
from wfimagevae.task.glide_options import GlideOptions

log = logging.getLogger("wfimagevae")

CPU = torch.device("cpu")
_TRANSFER = "pixel-transfer:"


def train(
    options: GlideOptions, folder: Path | None = None, watcher: Watcher | None = None
) -> bool:
    """Trains a GLIDE model; arguments, result and errors as `run_training`."""
    with torch.device("meta"):
        options = with_usual(options, _sketch(options))
    if options.dry_run and options.pretrained_model_name_or_path in (None, "pretrained"):
        options = options.changed(pretrained_model_name_or_path="scratch")  # without a download
    return run_training(options, _assemble, folder, watcher)


def _assemble(options: GlideOptions, process: World, folder: Path) -> "GlideTask":
    device = process.device
    network = build_network(options, CPU if options.fsdp else device)
    # Data and the space in which it is learned; what the network is told beside the text.
    data = build_datasets(options)
    space = open_space(options, data[0], device, data[1])
    if space.shape != network.sample_shape:
        raise ValueError(
            f"{options.model_name} learns samples of {network.sample_shape}, here are "
            f"{space.shape}: give another --resolution, or GLIDE-latent with --vae"
        )
    factor = options.upscale_factor if "low_res" in network.needs else 1
    if factor > min(space.shape[1:]):
        raise ValueError(f"--upscale_factor {factor} leaves nothing of {space.shape} to enlarge")
    check_bucket_sizes(data[0], space, network, factor)
    size, known = space.text.config_keys["vocab_size"], network.config.vocab_size
    if size != known:
        raise ValueError(
            f"--text_encoder {options.text_encoder} has {size} tokens, the network knows {known}: "
            "give the vocabulary that it learned with"
        )
    if network.config.clip_width:
        text = TokensAndClip(space.text, options.clip_model, device)
        width = text([""])["clip"].shape[1]
        if width != network.config.clip_width:
            raise ValueError(
                f"--clip_model {options.clip_model} gives {width} numbers, the network reads "
                f"{network.config.clip_width}"
            )
        space = replace(space, text=text, facts=space.facts | {"text": text.facts})
    space = replace(space, condition=_conditions(options, network, space))
    parts = space.encode, options, options.seed, space.condition, space.text
    objective = NoisePrediction(network, *parts)
    return assemble(GlideTask, options, space, objective, data, process, folder)


def two_stages(
    options: GlideOptions, generator: FlowGenerator, device: torch.device
) -> TwoStageGenerator | None:
    """The network in training and the other stage that the options name, None without one."""
    is_upsampler = "low_res" in generator.model.needs
    path, wrong, flag = options.upsampler, options.base_model, "--base_model"
    if is_upsampler:
        path, wrong, flag = wrong, path, "--upsampler"
    if wrong:
        raise ValueError(f"{flag} {wrong}: {options.model_name} is that stage itself; leave it out")
    if path is None:
        return None
    name = "GLIDE-base" if is_upsampler else "GLIDE-upsample"
    source = GeneratorOptions(
        from_pretrained=path, model_name=name, text_encoder=options.text_encoder
    )
    other = load_generator(source, device, options.mix_precision)
    pair = (other, generator) if is_upsampler else (generator, other)
    return TwoStageGenerator(*pair, options.part(UpsamplerOptions))


class GlideValidator(FlowValidator):
    """Judges a GLIDE model, with the other stage that the options name.

    Pictures of a model that needs images show held-out ones.
    """

    def __init__(self, options: GlideOptions, objective: NoisePrediction, generator, *others):
        stages = two_stages(options, generator, generator.device)
        super().__init__(options, objective, generator, *others, stages)

    def picture(self, sampling: SamplingOptions, progress: Progress | None) -> Callable:
        """Draws what prompts say, or beside each other what was given, drawn and held out."""
        if not self.shown.model.needs:
            return super().picture(sampling, progress)
        count = min(max(self.options.eval_num_images // 3, 1), len(self.held_out))
        positions = list(range(count))
        batch = self.held_out.to_inputs(self.held_out.read_batch(positions), self.world.device)
        batch |= {"position": positions}
        condition = self.objective.condition(batch)
        drawn = self.generator.images(
            self.generator.sample(positions, condition, sampling, progress).nan_to_num(0.0)
        )
        given = condition.get("inpaint_image", condition.get("low_res"))
        given = given * condition.get("inpaint_mask", 1)
        given = F.interpolate(given, drawn.shape[2:], mode="nearest")
        # A row for each image: what the model was given, what it drew, the image itself.
        columns = torch.stack([given, drawn, batch["image"]], 1).flatten(0, 1).cpu()
        heads = ["given", "drawn", "held out"]
        return lambda path: save_png(path, sample_grid(columns, 3, batch["caption"], heads))


class GlideTask(FlowTask):
    """One player, who trains a GLIDE model."""

    player_name = "glide"
    judge = GlideValidator
    headline = ("train/loss", "train/error", "train/spikes_skipped")
    weights: ClassVar = {"glide": "state_dict.gen_model"}

    def parts(self) -> dict[str, Part]:
        usual = self.objective.usual
        return super().parts() | {"usual_errors": Part(lambda: usual, usual.copy_)}


def _sketch(options: GlideOptions, is_weighed: bool = False) -> Glide:
    """The network of the options with fresh weights, or those of a checkpoint if it has some.

    Raises:
        ValueError: a name, configuration or weights that are none of a GLIDE model.
    """
    name, path = options.model_name, options.pretrained_model_name_or_path or "pretrained"
    keys = read_config(options.network_config)
    keys.pop("_class_name", None)
    if path in ("pretrained", "scratch") or path.startswith(_TRANSFER):
        network = build_velocity_model(name, **keys)
    elif is_weighed:
        sizes = {"ignore_mismatched_sizes": options.ignore_mismatched_sizes}
        network = VelocityModel.from_pretrained(path, model_name=name, overrides=keys, **sizes)
    else:
        network = build_velocity_model(name, **keys)
        if config := config_of(find_weights(path)):
            kind, network = getattr(network, "kind", ""), VelocityModel.from_config(config, **keys)
            if isinstance(network, Glide) and network.kind != kind:
                raise ValueError(f"{path} holds a {network.kind}, not --model_name's {name}")
    if not isinstance(network, Glide):
        raise ValueError(f"--task glide trains GLIDE models; this is a {type(network).__name__}")
    return network


def build_network(options: GlideOptions, device: torch.device) -> Glide:
    """The network on its device, with the parts frozen that do not learn.

    Raises:
        ValueError: a name, configuration or weights that are none of a GLIDE model.
    """
    network, source = _sketch(options, is_weighed=True), options.pretrained_model_name_or_path
    if source is None:
        is_ours = options.network_config or options.model_name == "GLIDE-latent"
        source = "scratch" if is_ours else "pretrained"
    if source == "pretrained":
        flag = "--pretrained_model_name_or_path (or begin with scratch)"
        network.load_weights(read_torch_file(download_glide(options.model_name, flag)))
    elif source.startswith(_TRANSFER):
        path = source.removeprefix(_TRANSFER)
        pixels = VelocityModel.from_pretrained(path, model_name="GLIDE-base")
        start_from_pixels(network, pixels)
    # What learns, and what of that begins anew.
    part, _, is_new = options.train.partition("-")
    if is_new:
        network.reset_text() if part == "text" else network.reset_unet()
    for key, parameter in network.named_parameters() if part != "all" else ():
        parameter.requires_grad_(part_of(key) in (part, "both"))
    if options.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network.to(device).train()


def with_usual(options: GlideOptions, network: Glide) -> GlideOptions:
    """The options with what is usual for this network in place of what was not given."""
    is_upsampler, is_image = "low_res" in network.needs, options.dataset == "images"
    size = network.sample_shape[-1] * (8 if options.vae else 1)
    usual = {
        "resolution": size,
        "captions": "sidecar" if is_image else "none",
        "cfg_dropout_prob": 0.0 if is_upsampler else 0.2,
        "guidance_scale": 1.0 if is_upsampler else 4.0,
        "vlb_weight": 1.0 if options.train == "all" else 0.0,
    }
    changes = {name: value for name, value in usual.items() if getattr(options, name) is None}
    return options.changed(**changes, text_length=network.config.text_length)


def _conditions(
    options: GlideOptions, network: Glide, space: FlowSpace
) -> Callable[[dict], Condition]:
    """What the network is told of a batch: its captions, and parts of its images."""

    def condition(batch: dict) -> Condition:
        told = space.text(batch["caption"], batch.get("text"))
        if "low_res" in network.needs:
            told["low_res"] = small_images(batch, options)
        if "inpaint_image" in network.needs:
            told["inpaint_image"] = batch["image"]
            told["inpaint_mask"] = random_masks(batch, options.seed)
        return told

    return condition


def small_images(batch: dict, options: GlideOptions) -> Tensor:
    """What an upsampler enlarges: images scaled down and rounded to 8 bits, maybe with noise."""
    images, factor = batch["image"], options.upscale_factor
    size = [side // factor for side in images.shape[2:]]
    small = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    small = from_uint8(to_uint8(small))
    if options.low_res_noise:
        seed, shape = stable_hash("low_res", options.seed), tuple(small.shape[1:])
        noise = sample_noise(seed, batch["position"], shape, small.device)
        small = small + options.low_res_noise * noise
    return small


def random_masks(batch: dict, seed: int) -> Tensor:
    """Masks, (B, 1, H, W), 0 in a random rectangle of each image, which is to be filled in."""
    height, width = batch["image"].shape[2:]
    names = ("top", "left", "bottom", "right")
    edges = [sample_uniforms(seed, f"mask {name}", batch["position"]) for name in names]
    device = batch["image"].device
    sides = []
    for first, second, side in ((0, 2, height), (1, 3, width)):
        places = (torch.arange(side) + 0.5) / side
        low = torch.minimum(edges[first], edges[second])[:, None]
        high = torch.maximum(edges[first], edges[second])[:, None]
        sides.append((places > low) & (places < high))  # (B, side)
    hole = sides[0][:, None, :, None] & sides[1][:, None, None, :]
    return (~hole).float().to(device)
