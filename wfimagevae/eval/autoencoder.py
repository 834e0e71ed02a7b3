"""Autoencoders to evaluate: ours from any checkpoint, others from diffusers, behind one face."""

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wfimagevae.engine.device import autocast
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.vae.modeling_wfvae2_image import pad_to_multiple

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class Autoencoder:
    """A network with the two calls that an evaluation makes.

    Attributes:
        network: The network, on its device and in evaluation mode.
        encode: Images in [-1, 1], (B, 3, H, W), to latents (the posterior's mode).
        decode: Latents to images.
        multiple: Height and width must be multiples of this.
    """

    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    multiple: int

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, precision: str = "fp32") -> Tensor:
        """Encodes and decodes images of any size.

        Args:
            images: In [-1, 1], (B, 3, H, W); padded by reflection and cropped back as needed.
            precision: fp32, or autocast to bf16 or fp16.

        Returns:
            Reconstructions in [-1, 1], float32, (B, 3, H, W), on the network's device.

        Raises:
            ValueError: values overflowed.
        """
        images = images.to(self.device, memory_format=torch.channels_last)
        padded, (height, width) = pad_to_multiple(images, self.multiple)
        with autocast(self.device, precision):
            decoded = self.decode(self.encode(padded))
        decoded = decoded[..., :height, :width].float()
        if not decoded.isfinite().all():
            raise ValueError(f"the model's output is not finite in {precision}; try bf16 or fp32")
        return decoded.clamp(-1, 1)


def load_vae(
    model_name: str,
    from_pretrained: str | None = None,
    model_config: str | None = None,
    ckpt_path: str | None = None,
    use_raw_weights: bool = False,
) -> nn.Module:
    """Loads one of our autoencoders as the flags of `add_model_args` say, on the CPU.

    Args:
        model_name: Registered name.
        from_pretrained: Hugging Face folder or hub name, .ckpt, or folder of .ckpt files.
        model_config: JSON file for a checkpoint that embeds no configuration.
        ckpt_path: .ckpt file, in place of ``from_pretrained``.
        use_raw_weights: Raw weights instead of a checkpoint's EMA.

    Raises:
        ValueError: none or both sources are given, or what they hold does not fit the model.
    """
    if bool(from_pretrained) == bool(ckpt_path):
        raise ValueError("give either --from_pretrained or --ckpt_path")
    if ckpt_path and not Path(ckpt_path).is_file():
        raise ValueError(f"--ckpt_path {ckpt_path}: no such file")
    model_class = ModelRegistry.get_model(model_name)
    with _raw_weights() if use_raw_weights else contextlib.nullcontext():
        return model_class.from_pretrained(from_pretrained or ckpt_path, model_config)


@contextlib.contextmanager
def _raw_weights():
    """Sets the variable by which `from_pretrained` leaves a checkpoint's EMA aside."""
    before = os.environ.get("NOT_USE_EMA_MODEL")
    os.environ["NOT_USE_EMA_MODEL"] = "1"
    try:
        yield
    finally:
        del os.environ["NOT_USE_EMA_MODEL"]
        if before is not None:
            os.environ["NOT_USE_EMA_MODEL"] = before


def as_autoencoder(
    vae: nn.Module, device: torch.device, tile_size: int | None = None
) -> Autoencoder:
    """One of our models, on a device, to be evaluated.

    Args:
        vae: The model.
        device: Where it will run.
        tile_size: Side of overlapping tiles, in pixels, for images beyond memory; None: no tiles.

    Raises:
        ValueError: tiles that are no multiple of the model's spatial factor.
    """
    if tile_size:
        factor = vae.spatial_factor
        vae.enable_tiling(tile_size, overlap=min(128, tile_size // 2 // factor * factor))
    vae.to(device, memory_format=torch.channels_last)
    return Autoencoder(
        vae,
        encode=lambda images: vae.encode(images).latent_dist.mode(),
        decode=lambda latents: vae.decode(latents).sample,
        multiple=vae.spatial_factor,
    )


def load_diffusers(path: str, device: torch.device) -> Autoencoder:
    """Any image autoencoder of diffusers (AutoencoderKL, AutoencoderDC, AutoencoderTiny, ...).

    Args:
        path: Folder with its config.json, or a hub name, with or without a subfolder
            (``owner/name`` or ``owner/name/vae``).
        device: Where it will run.

    Raises:
        ValueError: it is no image autoencoder, or weights are missing in it.
        OSError: neither such a folder nor on the hub.
    """
    path = os.path.expanduser(path)
    # Not for a mistyped local path: the hub is asked for a minute where there is no network.
    is_hub_name = _HUB_NAME.fullmatch(path) and not Path(path.split("/")[0]).exists()
    if not Path(path).is_dir() and not is_hub_name:
        raise FileNotFoundError(f"{path} is neither a folder nor a hub name, owner/name")
    from diffusers import AutoModel

    subfolder = None
    if is_hub_name and not Path(path).is_dir() and path.count("/") > 1:
        owner, name, subfolder = path.split("/", 2)
        path = f"{owner}/{name}"
    network = AutoModel.from_pretrained(path, subfolder=subfolder).eval()
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError(f"{path}: weights are missing in the checkpoint")
    return diffusers_autoencoder(network, device)


def diffusers_autoencoder(network: nn.Module, device: torch.device) -> Autoencoder:
    """A loaded model of diffusers, on a device; ValueError if it is no image autoencoder."""
    config = dict(network.config)
    widths = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    if not widths or not hasattr(network, "encode") or config.get("in_channels") != 3:
        raise ValueError(f"{type(network).__name__} is not an autoencoder of RGB images")
    network.to(device, memory_format=torch.channels_last)
    return Autoencoder(
        network,
        encode=lambda images: _latents(network.encode(images)),
        decode=lambda latents: network.decode(latents).sample,
        multiple=2 ** (len(widths) - 1),
    )


def _latents(encoded) -> Tensor:
    """diffusers' encoders return a posterior, ``latents`` or ``latent``."""
    for name in ("latent_dist", "latents", "latent"):
        if name in encoded:
            value = encoded[name]
            return value.mode() if name == "latent_dist" else value
    raise ValueError(f"{type(encoded).__name__} holds no latents that we know")
