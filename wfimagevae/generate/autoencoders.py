"""Autoencoders, ours from any checkpoint and those of diffusers, and their latents."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wfimagevae.engine.device import autocast
from wfimagevae.files import DIFFUSERS, is_hub_name
from wfimagevae.generate.options import AutoencoderOptions
from wfimagevae.model.modeling_aebase import DEFAULT_SCALE, ImageBaseAE, autoencoder_class
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.model.weight_files import config_of, find_weights, hub_answers


@dataclass(frozen=True)
class Autoencoder:
    """A network in evaluation mode, whose images' sides are multiples of ``multiple``.

    ``normalization`` is shift and scale, numbers per channel or one for all, as its configuration
    has them; None where it says nothing. A generative model sees (z - shift) * scale, see
    `to_latents` and `to_images`, which compute in ``precision``.
    """

    network: nn.Module
    multiple: int
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    precision: str = "fp32"

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1], (B, 3, H, W), to the posterior's mean and log-variance, (B, C, h, w).

        They are in the model's own units; the second is None where it has no posterior.
        """
        # Our encoders return a posterior; those of diffusers that, ``latents`` or ``latent``.
        encoded = self.network.encode(images)
        if "latent_dist" in encoded:
            return encoded["latent_dist"].mode(), encoded["latent_dist"].logvar
        for name in ("latents", "latent"):
            if name in encoded:
                return encoded[name], None
        raise ValueError(f"{type(encoded).__name__} holds no latents that we know")

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to the posterior's mode."""
        return self.moments(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, precision: str = "fp32") -> Tensor:
        """Encodes and decodes images of any size, in [-1, 1], (B, 3, H, W).

        They are padded by reflection and cropped back. Values that overflow are a ValueError.
        """
        images = images.to(self.device, memory_format=torch.channels_last)
        padded, (height, width) = pad_to_multiple(images, self.multiple)
        with autocast(self.device, precision):
            decoded = self.decode(self.encode(padded))
        decoded = decoded[..., :height, :width].float()
        if not decoded.isfinite().all():
            raise ValueError(f"the model's output is not finite in {precision}; try bf16 or fp32")
        return decoded.clamp(-1, 1)

    @torch.no_grad()
    def to_latents(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W), to normalised latents, float32 (B, C, h, w).

        With standard normal noise, (B, C, h, w), drawn from the posterior; else its mode.
        """
        images = images.to(self.device, memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            z, logvar = self.moments(images)
        z = z.float()
        if noise is not None and logvar is not None:
            z = z + (0.5 * logvar.float()).exp() * noise
        shift, scale = self._statistics()
        return (z - shift) * scale

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images in [-1, 1]; ValueError if values overflow."""
        shift, scale = self._statistics()
        z = latents.to(self.device).float() / scale + shift
        with autocast(z.device, self.precision):
            images = self.decode(z).float()
        if not images.isfinite().all():
            raise ValueError(f"decoded images are not finite in {self.precision}; try bf16 or fp32")
        return images.clamp(-1, 1)

    def _statistics(self) -> list[Tensor]:
        """Shift and scale, (1, C, 1, 1) or (1, 1, 1, 1)."""
        return [torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in self.normalization]


def autoencoder_spec(options: AutoencoderOptions) -> str:
    """KIND:PATH of the model that options name, whose path may itself begin with ``diffusers:``."""
    path = str(options.from_pretrained or options.ckpt_path)
    return path if path.startswith(DIFFUSERS) else f"{options.model_name}:{path}"


def load_autoencoder(
    source: AutoencoderOptions | str,
    device: torch.device | str = "cpu",
    tile_size: int | None = None,
) -> Autoencoder:
    """The autoencoder of options, or of ``KIND:PATH``, on a device; ValueError where there is none.

    KIND is ``diffusers`` or a registered name such as ``WFVAE2Image``. ``tile_size`` in pixels is
    for images beyond memory, of ours alone: a multiple of the model's spatial factor, and at least
    two of them, or it is a ValueError.
    """
    source = read_spec(source) if isinstance(source, str) else source
    spec = autoencoder_spec(source)
    if spec.startswith(DIFFUSERS):
        if tile_size:
            raise ValueError(f"--tile_size {tile_size}: {spec} is not ours; leave it out")
        return load_diffusers(spec.removeprefix(DIFFUSERS), device)
    vae = load_vae(source)
    if tile_size:
        vae.enable_tiling(tile_size)
    return as_autoencoder(vae, device)


def spread_config(
    model_config: str | None, models: Sequence[AutoencoderOptions]
) -> Sequence[AutoencoderOptions]:
    """The models, those with no configuration in or beside their weights with the JSON file.

    Raises ValueError if no model needs it.
    """
    if not model_config:
        return models
    ours = [model for model in models if not autoencoder_spec(model).startswith(DIFFUSERS)]
    bare = [model for model in ours if config_of(find_weights(model.from_pretrained)) is None]
    if not bare:
        raise ValueError(
            f"--model_config {model_config}: every model has its own configuration; leave it out"
        )
    return [m.changed(config_file=model_config) if m in bare else m for m in models]


def read_spec(spec: str) -> AutoencoderOptions:
    """The model of ``KIND:PATH``; ValueError for another form."""
    kind, separator, path = spec.partition(":")
    if not (kind and separator and path):
        raise ValueError(
            f"{spec!r} names no autoencoder: write KIND:PATH, such as WFVAE2Image:results/my-vae"
        )
    # A model of the user's own, package.module:Class:PATH, has a colon in its name.
    if kind != "diffusers" and kind not in ModelRegistry.names() and ":" in path:
        class_name, _, path = path.partition(":")
        kind = f"{kind}:{class_name}"
    return AutoencoderOptions(model_name=kind, from_pretrained=path)


def load_vae(options: AutoencoderOptions) -> nn.Module:
    """One of our autoencoders, on the CPU.

    None or both sources, or weights that do not fit the model, are a ValueError.
    """
    path, config = options.from_pretrained or options.ckpt_path, options.config_file
    if bool(options.from_pretrained) == bool(options.ckpt_path):
        raise ValueError("give either --from_pretrained or --ckpt_path")
    for flag, file in (("ckpt_path", options.ckpt_path), ("model_config", config)):
        if file and not Path(file).is_file():
            raise ValueError(f"--{flag} {file}: no such file")
    kind = autoencoder_class(options.model_name, ("diffusers:PATH (to encode and decode)",))
    return kind.from_pretrained(path, config, use_ema=False if options.use_raw_weights else None)


def load_diffusers(path: str, device: torch.device | str) -> Autoencoder:
    """Any image autoencoder of diffusers (AutoencoderKL, AutoencoderDC, AutoencoderTiny, ...).

    ``path`` is a folder with its config.json, ``owner/name`` on the hub, or a subfolder of that,
    else it is a FileNotFoundError; on the device ``meta`` no weights are read. Another kind of
    model, or weights that are missing, are a ValueError.
    """
    from diffusers import AutoModel

    # A folder, or a name on the hub with its subfolder.
    path, subfolder, where = os.path.expanduser(path), None, ""
    is_sketch = torch.device(device).type == "meta"
    on_hub = not Path(path).is_dir()
    if on_hub:
        if not is_hub_name(path, subfolders=True):
            raise FileNotFoundError(f"{path} is neither a folder nor a hub name, owner/name")
        owner, name, *below = path.split("/", 2)
        path, subfolder = f"{owner}/{name}", below[0] if below else None
    try:
        is_cut_off = on_hub and not hub_answers(path)
        where = " (the Hugging Face hub is out of reach)" if is_cut_off else ""
        # Only what is cached, then: diffusers would ask the hub for each file for half a minute.
        read = AutoModel.from_config if is_sketch else AutoModel.from_pretrained
        with torch.device("meta") if is_sketch else contextlib.nullcontext():
            network = read(path, subfolder=subfolder, local_files_only=is_cut_off)
    except (ValueError, OSError) as error:
        raise ValueError(f"diffusers reads no model from {path}{where}: {error}") from error
    network.eval()
    if not is_sketch and any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError(f"{path}: weights are missing in the checkpoint")
    return as_autoencoder(network, device)


def as_autoencoder(network: nn.Module, device: torch.device | str) -> Autoencoder:
    """A loaded model, ours or of diffusers, on a device; ValueError if it is no autoencoder."""
    config, normalization = dict(network.config), None
    if isinstance(network, ImageBaseAE):
        # Shift and scale count once scripts/latent_stats.py has measured them.
        shift, scale = list(config["shift"]), list(config["scale"])
        if any(shift) or set(scale) != {DEFAULT_SCALE}:
            normalization = shift, scale
        multiple = network.spatial_factor
    else:
        widths = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        if not widths or not hasattr(network, "encode") or config.get("in_channels") != 3:
            raise ValueError(f"{type(network).__name__} is not an autoencoder of RGB images")
        # One factor and shift for all channels, or mean and standard deviation of each, if any.
        factor = config.get("scaling_factor")
        if config.get("latents_mean") and config.get("latents_std"):
            scale = [(factor or 1.0) / std for std in config["latents_std"]]
            normalization = list(config["latents_mean"]), scale
        elif factor is not None:
            normalization = [config.get("shift_factor") or 0.0], [factor]
        multiple = 2 ** (len(widths) - 1)
    network.to(device, memory_format=torch.channels_last)
    return Autoencoder(network, multiple, normalization)
