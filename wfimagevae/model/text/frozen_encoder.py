"""Frozen text encoders of the CLIP, T5 and BERT families, through transformers."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wfimagevae.files import is_hub_name
from wfimagevae.model.flow.text_condition import masked_mean
from wfimagevae.model.weight_files import hub_answers, listed, weights_fingerprint

DEFAULT_TOKENS = 128
SHOWN_OF_PROMPT = 60  # characters that a warning quotes
# Families, and the model_type in config.json of those that belong to them; of the last, a part.
FAMILIES = {
    "clip": ("clip", "clip_text_model"),
    "t5": ("t5", "mt5", "umt5"),
    "bert": ("bert", "electra", "mpnet"),
}
logger = logging.getLogger(__name__)


def open_frozen_encoder(facts: Mapping, device: torch.device) -> "FrozenEncoder":
    """A pretrained encoder, on the device, as `open_text_encoder` describes it.

    Args:
        facts: ``kind`` and ``source``; ``length`` or None; ``fingerprint``, checked if there.
        device: Where it computes.
    """
    kind, source = facts["kind"], facts["source"]
    tokenizer, network = _load(kind, source)
    found = weights_fingerprint(network)
    if facts["fingerprint"] not in (None, found):
        raise ValueError(
            f"the text encoder {kind}:{source} has other weights than the one that the model was "
            f"trained with: fingerprint {found[:12]}, recorded {facts['fingerprint'][:12]}; "
            "bring back the weights it had"
        )
    limit = min(tokenizer.model_max_length, _positions(network))
    length = facts["length"] or min(DEFAULT_TOKENS, limit)
    if length > limit:
        raise ValueError(f"--text_length {length}: {kind}:{source} takes at most {limit} tokens")
    local = Path(source).expanduser()
    facts = {
        "kind": kind,
        "source": str(local.resolve()) if local.exists() else source,
        "length": length,
        "fingerprint": found,
    }
    return FrozenEncoder(tokenizer, network.to(device), facts)


class FrozenEncoder:
    """Tokens of the last layer, and one vector for the text.

    The vector is CLIP's own, at the token that ends the text; elsewhere the mean of the tokens:
    T5 has no other, and the first token of a BERT says little of the text unless it was trained
    to (Reimers and Gurevych 2019, arXiv:1908.10084).

    Args:
        tokenizer: Tokenizer of transformers.
        network: Model of transformers, on the device where it computes.
        facts: As for `TextEncoder`.
    """

    def __init__(self, tokenizer, network: nn.Module, facts: dict):
        tokenizer.padding_side = "right"
        self.tokenizer, self.network, self.facts = tokenizer, network, facts
        self.length, self._has_warned = facts["length"], False
        width = network.config.hidden_size
        sizes = {"text_length": self.length, "text_width": width, "pooled_width": width}
        self.config_keys = {"text_encoder": "external", **sizes}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """``tokens`` (B, L, D), ``mask``, bool (B, L), and ``pooled`` (B, D)."""
        prompts = [prompt.strip() for prompt in prompts]
        self._warn_of_long(prompts)
        device = self.network.device
        inputs = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device)
        attended = inputs["attention_mask"]
        # Conditions are as precise as their training knew them, whatever precision is around.
        with torch.autocast(device.type, enabled=False):
            output = self.network(input_ids=inputs["input_ids"], attention_mask=attended)
        is_text = torch.tensor([bool(prompt) for prompt in prompts], device=device)
        mask = attended.bool() & is_text[:, None]
        tokens, pooled = masked_mean(output.last_hidden_state, mask)
        if self.facts["kind"] == "clip":
            pooled = output.pooler_output.masked_fill(~is_text[:, None], 0)
        rest = self.length - mask.shape[1]
        return {
            "tokens": F.pad(tokens, (0, 0, 0, rest)),
            "mask": F.pad(mask, (0, rest)),
            "pooled": pooled,
        }

    def _warn_of_long(self, prompts: Sequence[str]) -> None:
        if self._has_warned:
            return
        found = self.tokenizer(prompts, truncation=True, max_length=self.length + 1)["input_ids"]
        for prompt, ids in zip(prompts, found, strict=True):
            if len(ids) > self.length:
                logger.warning(
                    "a prompt is cut to --text_length %d tokens; others may be as well: %r ...",
                    self.length,
                    prompt[:SHOWN_OF_PROMPT],
                )
                self._has_warned = True
                return


def _load(kind: str, source: str) -> tuple:
    """Tokenizer and network, in float32, in evaluation mode, without gradients, on the CPU."""
    try:
        from transformers import AutoConfig, AutoTokenizer
    except ImportError:
        raise ValueError(
            f"--text_encoder {kind} needs a package: pip install transformers"
        ) from None
    name, options, where = _located(kind, source)

    def read(cls: type, **more):
        try:
            with _quiet():  # what it would say of missing weights is checked below
                return cls.from_pretrained(name, **options, **more)
        except (OSError, RuntimeError, ImportError, ValueError) as error:
            raise ValueError(
                f"--text_encoder {kind}:{source}: transformers reads no model from there{where}; "
                f"give a folder with config.json, weights and tokenizer files: {error}"
            ) from error

    network_class = _network_class(kind, source, read(AutoConfig).model_type)
    network, info = read(network_class, output_loading_info=True)
    tokenizer = read(AutoTokenizer)
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # some files lack its weights, and nothing here asks for it
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["error_msgs"]:
        found = listed(missing or list(info["error_msgs"]))
        raise ValueError(f"--text_encoder {kind}:{source}: weights are missing there: {found}")
    return tokenizer, network.float().eval().requires_grad_(False)


def _located(kind: str, source: str) -> tuple[str, dict, str]:
    """A folder or hub name, options to read it with, and what to add to an error."""
    local = Path(source).expanduser()
    if local.is_dir():
        return str(local), {"local_files_only": True}, ""
    # The hub's oldest models, such as bert-base-uncased, have no user in front.
    if not (is_hub_name(source) or re.fullmatch(r"\w[\w.-]*", source)):
        raise ValueError(
            f"--text_encoder {kind}:{source}: no such folder (and no hub name, user/model)"
        )
    # Only what is cached, then: the hub would be asked for each file for half a minute.
    is_cut_off = not hub_answers(source)
    where = " (the Hugging Face hub is out of reach)" if is_cut_off else ""
    return source, {"local_files_only": is_cut_off}, where


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and progress bars of transformers."""
    from transformers.utils import logging as messages

    level, has_bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if has_bars:
            messages.enable_progress_bar()


def _network_class(kind: str, source: str, model_type: str) -> type:
    """The class of transformers that reads the text alone; ValueError for another family."""
    from transformers import AutoModel, AutoModelForTextEncoding, CLIPTextModel

    types = FAMILIES[kind]
    is_right = any(t in model_type for t in types) if kind == "bert" else model_type in types
    if not is_right:
        near = [family for family in FAMILIES if family in model_type]
        hint = f"write {near[0]}:{source}" if near else f"known are {', '.join(FAMILIES)}"
        raise ValueError(
            f"--text_encoder {kind}:{source}: the model there is a {model_type}, no {kind}; {hint}"
        )
    if kind == "clip":
        return CLIPTextModel
    return AutoModelForTextEncoding if kind == "t5" else AutoModel


def _positions(network: nn.Module) -> int:
    """How many tokens the network knows places for; T5 knows none."""
    config = network.config
    count = getattr(config, "max_position_embeddings", None) or 2**31
    # RoBERTa and its kin begin counting behind the number of the padding.
    embeddings = getattr(network, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return count - (0 if padding is None else padding + 1)
