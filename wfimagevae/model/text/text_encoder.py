"""Text encoders by name: what ``--text_encoder`` says, or a checkpoint recorded."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wfimagevae.model.text.frozen_encoder import FAMILIES, SHOWN_OF_PROMPT, open_frozen_encoder

DEFAULT_BYTES = 128
logger = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """Turns prompts into the text part of a flow transformer's condition.

    An empty or blank prompt gives zeros, which are the null condition. Prompts that are too long
    are cut; a warning says so once.

    Attributes:
        facts: What opens it again with `open_text_encoder`: ``kind``, ``source``, ``length`` and
            ``fingerprint`` of the weights, the latter None of bytes.
        config_keys: Config keys of a `FlowTransformer` that reads what this gives.
    """

    facts: dict
    config_keys: dict

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts, each as a row, on the encoder's device."""


def open_text_encoder(
    spec: str | Mapping, device: torch.device | str, length: int | None = None
) -> TextEncoder:
    """The text encoder that a flag names or that a checkpoint recorded.

    Args:
        spec: ``bytes``; ``clip:``, ``t5:`` or ``bert:`` and a folder or hub name, user/model, of a
            model of that family; or an encoder's ``facts``.
        device: Where it computes, and where its results are.
        length: Tokens, or bytes, of a text. None takes the recorded one; otherwise 128, or what
            the model can take if that is less.
    """
    if isinstance(spec, str):
        kind, _, source = spec.partition(":")
        facts = {"kind": kind, "source": source or None, "length": length, "fingerprint": None}
    else:
        facts = dict(spec)
        if length not in (None, facts["length"]):
            raise ValueError(
                f"--text_length {length} differs from the {facts['length']} that the model was "
                "trained with; leave it out"
            )
    if facts["length"] is not None and facts["length"] < 1:
        raise ValueError(f"--text_length must be at least 1, got {facts['length']}")
    kind, source = facts["kind"], facts["source"]
    if kind == "bytes" and source is None:
        return ByteEncoder(facts["length"] or DEFAULT_BYTES, torch.device(device))
    if kind not in FAMILIES or source is None:
        shown = spec if isinstance(spec, str) else f"{kind}:{source}"
        kinds = ", ".join(f"{family}:PATH" for family in FAMILIES)
        raise ValueError(
            f"--text_encoder {shown!r} names no text encoder; write bytes, or one of {kinds} with "
            "a folder or hub name, such as clip:openai/clip-vit-large-patch14"
        )
    return open_frozen_encoder(facts, torch.device(device))


class ByteEncoder:
    """UTF-8 bytes plus one, and 0 behind the end; the network learns to read them.

    Texts of more than ``length`` bytes are cut between characters.
    """

    def __init__(self, length: int, device: torch.device):
        self.length, self.device, self._has_warned = length, device, False
        self.facts = {"kind": "bytes", "source": None, "length": length, "fingerprint": None}
        self.config_keys = {"text_encoder": "bytes", "text_length": length}

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """``ids``, int64 (B, length)."""
        ids = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            text = self._cut(prompt.strip()).encode()
            row[: len(text)] = torch.tensor(list(text), dtype=torch.int64) + 1
        return {"ids": ids.to(self.device)}

    def _cut(self, prompt: str) -> str:
        data = prompt.encode()
        if len(data) <= self.length:
            return prompt
        if not self._has_warned:
            logger.warning(
                "a prompt of %d bytes is cut to --text_length %d; others may be as well: %r ...",
                len(data),
                self.length,
                prompt[:SHOWN_OF_PROMPT],
            )
            self._has_warned = True
        return data[: self.length].decode(errors="ignore")
