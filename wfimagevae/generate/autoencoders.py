"""Autoencoders to evaluate: ours from any checkpoint, others from diffusers, behind one face."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wfimagevae.engine.device import autocast
from wfimagevae.files import is_hub_name
from wfimagevae.model.modeling_aebase import DEFAULT_SCALE, autoencoder_class
from wfimagevae.model.registry import ModelRegistry
from wfimagevae.model.vae.tiling import pad_to_multiple
from wfimagevae.model.weight_files import has_config, hub_answers

Moments = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Autoencoder:
    """A network with the calls that an evaluation makes; latents are in the model's own units.

    Attributes:
        network: The network, on its device and in evaluation mode.
        encode: Images in [-1, 1], (B, 3, H, W), to latents (the posterior's mode).
        decode: Latents to images.
        multiple: Height and width must be multiples of this.
        moments: Images to the posterior's mean and log-variance, (B, C, h, w) each; the second is
            None where the model has no posterior.
        normalization: Shift and scale by which the model's own configuration makes latents fit
            for generation, (z - shift) * scale, numbers per channel or one for all; None where it
            says nothing.
    """

    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    multiple: int
    moments: Callable[[Tensor], Moments] | None = None
    normalization: tuple[list[float], list[float]] | None = None

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


def load_autoencoder(spec: str, model_config: str | None = None) -> Autoencoder:
    """The autoencoder of ``KIND:PATH``, on the CPU.

    Args:
        spec: KIND is ``diffusers`` or a registered name such as ``WFVAE2Image``.
        model_config: As for `load_vae`.

    Raises:
        ValueError: the form is another, or nothing can be loaded from there.
    """
    kind, path = _kind_and_path(spec)
    if kind == "diffusers":
        return load_diffusers(path, torch.device("cpu"))
    return as_autoencoder(load_vae(kind, path, model_config), torch.device("cpu"))


def load_autoencoders(
    specs: Sequence[str], model_config: str | None = None
) -> dict[str, Autoencoder]:
    """`load_autoencoder` of each of ``specs``.

    Args:
        specs: KIND:PATH each.
        model_config: JSON file for the checkpoints among them that have no configuration in them
            or beside them; the others keep their own.

    Raises:
        ValueError: a model cannot be loaded, or none needs ``model_config``.
    """
    bare = [spec for spec in specs if model_config and _lacks_config(*_kind_and_path(spec))]
    if model_config and not bare:
        raise ValueError(
            f"--model_config {model_config}: every model has its own configuration; leave it out"
        )
    return {spec: load_autoencoder(spec, model_config if spec in bare else None) for spec in specs}


def _lacks_config(kind: str, path: str) -> bool:
    return kind != "diffusers" and not has_config(path)


def _kind_and_path(spec: str) -> tuple[str, str]:
    kind, separator, path = spec.partition(":")
    if not (kind and separator and path):
        raise ValueError(
            f"{spec!r} names no autoencoder: write KIND:PATH, such as WFVAE2Image:results/my-vae"
        )
    # A model of the user's own, package.module:Class:PATH, has a colon in its name.
    if kind != "diffusers" and kind not in ModelRegistry.names() and ":" in path:
        class_name, _, path = path.partition(":")
        kind = f"{kind}:{class_name}"
    return kind, path


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
    if model_config and not Path(model_config).is_file():
        raise ValueError(f"--model_config {model_config}: no such file")
    model_class = autoencoder_class(model_name)
    with raw_weights(use_raw_weights):
        return model_class.from_pretrained(from_pretrained or ckpt_path, model_config)


@contextlib.contextmanager
def raw_weights(wanted: bool):
    """While it lasts, and if wanted, `from_pretrained` leaves a checkpoint's EMA aside."""
    before = os.environ.get("NOT_USE_EMA_MODEL")
    if wanted:
        os.environ["NOT_USE_EMA_MODEL"] = "1"
    try:
        yield
    finally:
        if wanted:
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
        ValueError: tiles that are no multiple of the model's spatial factor, or too small.
    """
    if tile_size:
        factor = vae.spatial_factor
        if tile_size % factor or tile_size < 2 * factor:
            raise ValueError(
                f"--tile_size must be a multiple of {factor} and at least {2 * factor}, "
                f"got {tile_size}"
            )
        vae.enable_tiling(tile_size, overlap=min(128, tile_size // 2 // factor * factor))
    vae.to(device, memory_format=torch.channels_last)
    return Autoencoder(
        vae,
        encode=lambda images: vae.encode(images).latent_dist.mode(),
        decode=lambda latents: vae.decode(latents).sample,
        multiple=vae.spatial_factor,
        moments=lambda images: _moments(vae.encode(images)),
        normalization=_own_normalization(vae.config),
    )


def _own_normalization(config) -> tuple[list[float], list[float]] | None:
    """What scripts/latent_stats.py wrote; None while the defaults stand there."""
    if set(config["scale"]) == {DEFAULT_SCALE} and not any(config["shift"]):
        return None
    return list(config["shift"]), list(config["scale"])


def load_diffusers(path: str, device: torch.device) -> Autoencoder:
    """Any image autoencoder of diffusers (AutoencoderKL, AutoencoderDC, AutoencoderTiny, ...).

    Args:
        path: Folder with its config.json, or a hub name, with or without a subfolder
            (``owner/name`` or ``owner/name/vae``).
        device: Where it will run.

    Raises:
        ValueError: it is not on the hub, no image autoencoder, or weights are missing in it.
        FileNotFoundError: neither a folder nor a hub name.
    """
    path = os.path.expanduser(path)
    on_hub = not Path(path).is_dir() and is_hub_name(path, subfolders=True)
    if not Path(path).is_dir() and not on_hub:
        raise FileNotFoundError(f"{path} is neither a folder nor a hub name, owner/name")
    from diffusers import AutoModel

    subfolder = None
    if on_hub and path.count("/") > 1:
        owner, name, subfolder = path.split("/", 2)
        path = f"{owner}/{name}"
    where = ""
    try:
        is_cut_off = on_hub and not hub_answers(path)
        where = " (the Hugging Face hub is out of reach)" if is_cut_off else ""
        # Only what is cached, then: diffusers would ask the hub for each file for half a minute.
        network = AutoModel.from_pretrained(path, subfolder=subfolder, local_files_only=is_cut_off)
    except (ValueError, OSError) as error:
        raise ValueError(f"diffusers reads no model from {path}{where}: {error}") from error
    network.eval()
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
        encode=lambda images: _moments(network.encode(images))[0],
        decode=lambda latents: network.decode(latents).sample,
        multiple=2 ** (len(widths) - 1),
        moments=lambda images: _moments(network.encode(images)),
        normalization=_diffusers_normalization(config),
    )


def _diffusers_normalization(config: dict) -> tuple[list[float], list[float]] | None:
    """From one factor and shift for all, and mean and standard deviation per channel, if any."""
    factor = config.get("scaling_factor")
    if config.get("latents_mean") and config.get("latents_std"):
        scale = [(factor or 1.0) / std for std in config["latents_std"]]
        return list(config["latents_mean"]), scale
    return None if factor is None else ([config.get("shift_factor") or 0.0], [factor])


def _moments(encoded) -> Moments:
    """Our encoders return a posterior; those of diffusers that, ``latents`` or ``latent``."""
    for name in ("latent_dist", "latents", "latent"):
        if name in encoded:
            value = encoded[name]
            return (value.mode(), value.logvar) if name == "latent_dist" else (value, None)
    raise ValueError(f"{type(encoded).__name__} holds no latents that we know")
