"""Training losses of the image VAE."""


def __getattr__(name: str):
    if name in ("LPIPSWithDiscriminator2D", "LossConfig"):
        from wfimagevae.model.losses import perceptual_loss

        return getattr(perceptual_loss, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
