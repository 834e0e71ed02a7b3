"""One model from the encoder of one and the decoder of another."""

from collections.abc import Mapping

from torch import nn

# They do not change what the halves say to each other.
_FREE = {"shift", "scale", "dropout"}
_OF_DECODER = ("decoder_", "spade")


def merge(encoder_from: nn.Module, decoder_from: nn.Module) -> nn.Module:
    """A model with one's encoder, latent statistics included, and the other's decoder.

    Args:
        encoder_from: Gives the encoder, ``shift`` and ``scale``.
        decoder_from: Gives the decoder; its latents must mean the same, which no configuration
            tells: usually it was trained further with the first one's encoder frozen.

    Raises:
        ValueError: classes differ, or settings that both halves share.
    """
    if type(encoder_from) is not type(decoder_from):
        raise ValueError(
            f"cannot merge a {type(encoder_from).__name__} with a {type(decoder_from).__name__}"
        )
    config = merge_configs(encoder_from.config, decoder_from.config)
    merged = type(encoder_from).from_config(config)
    merged.encoder.load_state_dict(encoder_from.encoder.state_dict())
    merged.decoder.load_state_dict(decoder_from.decoder.state_dict())
    return merged.eval()


def merge_configs(encoder_config: Mapping, decoder_config: Mapping) -> dict:
    """The encoder's configuration with the decoder's ``decoder_...`` and ``spade`` entries.

    Raises:
        ValueError: they differ in an entry that both halves share; all are listed.
    """
    shared = [
        key
        for key in encoder_config
        if not key.startswith(("_", "encoder_", "base_", *_OF_DECODER)) and key not in _FREE
    ]
    unlike = [
        f"{key} ({encoder_config[key]} and {decoder_config.get(key)})"
        for key in shared
        if _plain(encoder_config[key]) != _plain(decoder_config.get(key))
    ]
    if unlike:
        raise ValueError(f"encoder and decoder do not fit: they differ in {', '.join(unlike)}")
    of_decoder = {k: v for k, v in decoder_config.items() if k.startswith(_OF_DECODER)}
    return dict(encoder_config) | of_decoder


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
