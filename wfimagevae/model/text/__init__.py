"""From prompts to what a flow transformer reads: bytes, or the tokens of a frozen encoder."""

from wfimagevae.model.text.text_encoder import TextEncoder, open_text_encoder

__all__ = ["TextEncoder", "open_text_encoder"]
