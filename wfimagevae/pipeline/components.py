"""The networks that a pipeline trains, by our names and by FluxFlow's."""

from collections.abc import Iterable

ENCODER, DECODER, DISCRIMINATOR = "encoder", "decoder", "discriminator"
FLOW, TEXT_ENCODER = "flow", "text_encoder"

ALIASES = {
    "encoder": (ENCODER,),
    "compressor": (ENCODER,),
    "decoder": (DECODER,),
    "expander": (DECODER,),
    "vae": (ENCODER, DECODER),
    "discriminator": (DISCRIMINATOR,),
    "D_img": (DISCRIMINATOR,),
    "flow": (FLOW,),
    "flow_processor": (FLOW,),
    "text_encoder": (TEXT_ENCODER,),
}


def components(names: Iterable[str]) -> set[str]:
    """Our components that some names mean."""
    return {component for name in names for component in ALIASES[name]}
