"""What the scripts that reconstruct share: the model, the frames that it gives back, pictures."""

from pathlib import Path

import torch
from torch import Tensor

from clip_options import VideoModelOptions
from wfimagevae.engine.device import PRECISIONS
from wfimagevae.eval.psnr import psnr
from wfimagevae.pictures.grid import sample_grid, save_png
from wfimagevae.pictures.pixels import from_uint8, to_uint8, to_unit
from wfvae_video import MODELS
from wfvae_video.autoencoder import VideoAutoencoder
from wfvae_video.loading import find_weights, read_config

MAX_ROWS, ERROR_GAIN = 6, 5


def open_model(options: VideoModelOptions, device: torch.device) -> VideoAutoencoder:
    """The autoencoder that options name, on a device and in their precision."""
    path = options.from_pretrained
    name = options.model_name or read_config(find_weights(Path(path)))[0]
    if name not in MODELS:
        raise ValueError(
            f"the config.json of {path} names the class {name!r}; give --model_name, one of "
            f"{', '.join(MODELS)}"
        )
    model = MODELS[name].from_pretrained(path)
    if options.enable_tiling:
        model.enable_tiling()
    return model.to(device, PRECISIONS[options.mixed_precision])


@torch.inference_mode()
def reconstruct(model: VideoAutoencoder, clips: Tensor) -> Tensor:
    """The reconstruction of clips in [-1, 1], (B, 3, T, H, W), as 8-bit frames (B, T, H, W, 3).

    The posterior's mode is decoded. So that no frame is lost, the last one is repeated until the
    temporal factor fits. Sides that are no multiples of the spatial factor are a ValueError.
    """
    config, num_frames = model.config, clips.shape[2]
    height, width = clips.shape[3:]
    if height % config.spatial_factor or width % config.spatial_factor:
        raise ValueError(
            f"height and width must be multiples of {config.spatial_factor}, got {height}x{width}"
        )
    missing = -(num_frames - 1) % config.temporal_factor
    padded = torch.cat([clips, clips[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
    decoded = model.decode(model.encode(padded).latent_dist.mode()).sample[:, :, :num_frames]
    if not decoded.isfinite().all():
        raise ValueError("the model's output is not finite; try --mixed_precision fp32")
    return to_uint8(decoded).permute(0, 2, 3, 4, 1).cpu()


def frame_psnr(clip: Tensor, pixels: Tensor) -> Tensor:
    """PSNR in dB of each frame, (T,): a clip (3, T, H, W) and its 8-bit frames (T, H, W, 3)."""
    restored = from_uint8(pixels.permute(0, 3, 1, 2))
    return psnr(to_unit(clip.transpose(0, 1)), to_unit(restored))


def save_contact_sheet(path: Path, clip: Tensor, pixels: Tensor) -> None:
    """Writes some of the frames as a PNG: original, reconstruction and error, a row each."""
    count = min(MAX_ROWS, len(pixels))
    numbers = torch.linspace(0, len(pixels) - 1, count).round().long()
    original = clip.transpose(0, 1)[numbers]
    restored = from_uint8(pixels[numbers]).permute(0, 3, 1, 2)
    error = (restored - original).abs() * ERROR_GAIN - 1
    cells = torch.stack([original, restored, error], dim=1).flatten(0, 1)
    titles = ["original", "reconstruction", f"error x {ERROR_GAIN}"]
    save_png(path, sample_grid(cells, 3, [f"{number}" for number in numbers], titles))


def sheet_path(path: str | Path) -> Path:
    """Where the contact sheet of a reconstruction lies: beside it."""
    return Path(path).with_name(f"{Path(path).stem}-frames.png")
