"""The video WF-VAEs, archived: they read public checkpoints and reconstruct clips.

model = WFVAE.from_pretrained("WF-VAE-L-16Chn")
model.enable_tiling()
latents = model.encode(clips).latent_dist.mode()  # clips (B, 3, T, H, W) in [-1, 1]
clips = model.decode(latents).sample
"""

from wfvae_video.wfvae import WFVAE
from wfvae_video.wfvae2 import WFVAE2

MODELS = {"WFVAE": WFVAE, "WFVAE2": WFVAE2}

__all__ = ["MODELS", "WFVAE", "WFVAE2"]
