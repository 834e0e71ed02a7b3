"""Names and types that flags of flow training share with those of sampling. No torch here."""

from argparse import ArgumentTypeError

from wfimagevae.generate.options import POINT_SETS as POINT_SETS
from wfimagevae.generate.options import SAMPLERS as SAMPLERS


def prompt_text(text: str) -> str:
    """A prompt of the command line, whose bytes need not be text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{text!r} is not UTF-8 text") from None
    return text
