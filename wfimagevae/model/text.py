"""From prompts to what a flow transformer reads: bytes, or the tokens of a frozen encoder.

Frozen encoders are of the CLIP, T5 and BERT families, through transformers. GLIDE has its text
transformer inside, and reads the ids of tokens.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor, nn

from wfimagevae.files import is_hub_name
from wfimagevae.model.flow.embed import masked_mean
from wfimagevae.model.glide.tokenizer import HUB_NAME, load_byte_pairs
from wfimagevae.model.weight_files import hub_answers, listed, weights_fingerprint

DEFAULT_LENGTH = 128  # bytes or tokens
_QUOTED = 60  # characters of a prompt that a warning quotes
# Families: the model_type in config.json of those that belong to them, and the class of
# transformers that reads the text alone.
_FAMILIES = {
    "clip": (r"clip(_text_model)?", "CLIPTextModel"),
    "t5": (r"u?m?t5", "AutoModelForTextEncoding"),
    "bert": (r".*(bert|electra|mpnet).*", "AutoModel"),
}
logger = logging.getLogger(__name__)


class TextEncoder:
    """Turns prompts into the text part of a flow transformer's condition.

    An empty or blank prompt gives the null condition: zeros, but for GLIDE. Prompts that are too
    long are cut; a warning says so once. ``facts`` open it again with `open_text_encoder`:
    ``kind``, ``source``, ``length``, ``fingerprint`` of the weights or the vocabulary, None of
    bytes, and ``precision`` where it is not fp32; ``config_keys`` are those of a
    network that reads what this gives. ``length`` counts in ``unit``.

    ``tokenise(prompts)``, which a worker may do, gives CPU tensors for `embed`, a row a prompt, and
    ``lengths``, a list of what each prompt takes whole, of which more than ``length`` is cut.
    """

    unit, limit = "tokens", "--text_length"
    device: torch.device
    tokenise: Callable[[Sequence[str]], dict[str, Any]]

    def __init__(self, facts: dict, **config_keys):
        self.facts, self.length, self._has_warned = facts, facts["length"], False
        self.config_keys = {**config_keys, "text_length": self.length}

    def __call__(
        self, prompts: Sequence[str], tokens: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The prompts, each as a row, on the encoder's device.

        ``tokens`` is what `tokenise` gave for them, if it was asked before. Of the first prompt
        that is too long a warning tells.
        """
        tokens = dict(tokens or self.tokenise(prompts))
        pairs = zip(prompts, tokens.pop("lengths"), strict=True)
        long = next((prompt for prompt, length in pairs if length > self.length), None)
        if long and not self._has_warned:
            message = "a prompt is cut to %s %d %s; others may be as well: %r ..."
            logger.warning(message, self.limit, self.length, self.unit, long.strip()[:_QUOTED])
            self._has_warned = True
        return self.embed(**{name: _sent(part, self.device) for name, part in tokens.items()})

    def embed(self, **tokens: Tensor) -> dict[str, Tensor]:
        """What the network reads, of tokens on the encoder's device."""
        return tokens


def open_text_encoder(
    spec: str | Mapping,
    device: torch.device | str,
    length: int | None = None,
    precision: str = "fp32",
) -> TextEncoder:
    """The text encoder that a flag names or that a checkpoint recorded, on a device.

    ``spec`` is ``bytes``; ``gpt2``, or ``gpt2:`` and a folder or hub name with the vocabulary;
    ``clip:``, ``t5:`` or ``bert:`` and a folder or hub name, user/model, of a model of that family;
    or an encoder's ``facts``. ``length`` is in tokens, or bytes; None takes
    the recorded one, otherwise 128, or what the model can take if that is less. ``precision``, fp32
    or bf16, is that of a frozen encoder that a flag names.
    """
    # Tokenizers start threads, unless told not to, and warn of each fork of a loader's worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A flag's words, or what a checkpoint recorded.
    if isinstance(spec, str):
        kind, _, source = spec.partition(":")
        facts = {"kind": kind, "source": source or None, "length": length, "fingerprint": None}
        facts |= {"precision": precision} if precision != "fp32" else {}
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
    device = torch.device(device)
    if kind == "gpt2" or (kind == "bytes" and source is None):
        if "precision" in facts:
            raise ValueError(f"--text_encoder_precision is of frozen encoders, not of {kind}")
        encoder = TokenEncoder if kind == "gpt2" else ByteEncoder
        return encoder(facts | {"length": facts["length"] or DEFAULT_LENGTH}, device)
    if kind not in _FAMILIES or source is None:
        name = spec if isinstance(spec, str) else f"{kind}:{source}"
        kinds = ", ".join(f"{family}:PATH" for family in _FAMILIES)
        raise ValueError(
            f"--text_encoder {name!r} names no text encoder; write bytes, gpt2, or one of {kinds} "
            "with a folder or hub name, such as clip:openai/clip-vit-large-patch14"
        )
    network, tokenizer = load_frozen(kind, source, f"--text_encoder {kind}:{source}")
    fingerprint = weights_fingerprint(network)
    _check_fingerprint(facts, f"{kind}:{source}", fingerprint, "weights")
    # How many tokens the network knows places for; T5 knows none. RoBERTa and its kin begin
    # counting behind the number of the padding.
    places = getattr(network.config, "max_position_embeddings", None) or 2**31
    embeddings = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    places -= 0 if padding is None else padding + 1
    limit = min(tokenizer.model_max_length, places)
    length = facts["length"] or min(DEFAULT_LENGTH, limit)
    if length > limit:
        raise ValueError(f"--text_length {length}: {kind}:{source} takes at most {limit} tokens")
    facts |= {"source": _absolute(source), "length": length, "fingerprint": fingerprint}
    if "precision" in facts:
        network.bfloat16()
    return FrozenEncoder(tokenizer, network.to(device), facts)


class ByteEncoder(TextEncoder):
    """``ids``, int64 (B, length): UTF-8 bytes plus one, and 0 behind the end.

    The network learns to read them. Texts of more than ``length`` bytes are cut between characters.
    """

    unit = "bytes"

    def __init__(self, facts: dict, device: torch.device):
        super().__init__(facts, text_encoder="bytes")
        self.device = device

    def tokenise(self, prompts: Sequence[str]) -> dict[str, Any]:
        texts = [prompt.strip().encode() for prompt in prompts]
        ids = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, data in zip(ids, texts, strict=True):
            if len(data) > self.length:
                data = data[: self.length].decode(errors="ignore").encode()
            row[: len(data)] = torch.tensor(list(data), dtype=torch.int64) + 1
        return {"ids": ids, "lengths": list(map(len, texts))}


class TokenEncoder(TextEncoder):
    """Ids of GPT-2's tokens, for a network that reads them itself: GLIDE.

    ``ids``, int64 (B, length), and ``mask``, bool (B, length), which says where they are text.
    """

    limit = "the network's"  # no flag

    def __init__(self, facts: dict, device: torch.device):
        source, self.device = facts["source"] or HUB_NAME, device
        self.tokenizer, fingerprint = load_byte_pairs(source)
        _check_fingerprint(facts, f"gpt2:{source}", fingerprint, "vocabulary")
        facts = facts | {"source": _absolute(source), "fingerprint": fingerprint}
        super().__init__(facts, vocab_size=self.tokenizer.get_vocab_size())

    def tokenise(self, prompts: Sequence[str]) -> dict[str, Any]:
        lower = [prompt.lower() if prompt.strip() else "" for prompt in prompts]
        texts = [encoding.ids for encoding in self.tokenizer.encode_batch(lower)]
        ids = torch.full((len(prompts), self.length), self.tokenizer.get_vocab_size() - 1)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, own in enumerate(texts):
            count = min(len(own), self.length)
            ids[i, :count] = torch.tensor(own[:count], dtype=torch.int64)
            mask[i, :count] = True
        return {"ids": ids, "mask": mask, "lengths": list(map(len, texts))}


class FrozenEncoder(TextEncoder):
    """Tokens of the last layer of a model of transformers, and one vector for the text.

    The vector is CLIP's own, at the token that ends the text; elsewhere the mean of the tokens: T5
    has no other, and the first token of a BERT says little of the text unless it was trained to
    (Reimers and Gurevych 2019, arXiv:1908.10084).
    """

    def __init__(self, tokenizer, network: nn.Module, facts: dict):
        width = network.config.hidden_size
        super().__init__(facts, text_encoder="external", text_width=width, pooled_width=width)
        tokenizer.padding_side = "right"
        self.network, self.device = network, network.device
        # Without the network, which is not sent to workers.
        self.tokenise = partial(_tokenise, tokenizer, self.length)

    @torch.no_grad()
    def embed(self, ids: Tensor, attended: Tensor, is_text: Tensor) -> dict[str, Tensor]:
        """``tokens`` (B, L, D), ``mask``, bool (B, L), and ``pooled`` (B, D)."""
        # Conditions are as precise as their training knew them, whatever precision is around.
        with torch.autocast(self.device.type, enabled=False):
            output = self.network(input_ids=ids, attention_mask=attended)
        values = output.last_hidden_state.float()
        # Of an empty prompt even the tokens that start and end it are masked.
        mask = attended.bool() & is_text[:, None]
        tokens, pooled = masked_mean(values, mask)
        if self.facts["kind"] == "clip":
            pooled = output.pooler_output.float().masked_fill(~is_text[:, None], 0)
        rest = self.length - mask.shape[1]
        tokens, mask = F.pad(tokens, (0, 0, 0, rest)), F.pad(mask, (0, rest))
        return {"tokens": tokens, "mask": mask, "pooled": pooled}


def _tokenise(tokenizer, length: int, prompts: Sequence[str]) -> dict[str, Any]:
    """What transformers reads of prompts; tokens that begin or end a text count as its own."""
    prompts = [prompt.strip() for prompt in prompts]
    how = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    inputs = tokenizer(prompts, **how)
    ids, attended = inputs["input_ids"], inputs["attention_mask"]
    lengths = attended.sum(1).tolist()
    if max(lengths) == length:  # some may have been longer
        lengths = list(map(len, tokenizer(prompts, verbose=False)["input_ids"]))
    is_text = torch.tensor(list(map(bool, prompts)))
    return {"ids": ids, "attended": attended, "is_text": is_text, "lengths": lengths}


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a copy from plain memory would wait for all that CUDA has to do."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _check_fingerprint(facts: Mapping, name: str, fingerprint: str, what: str) -> None:
    """Raises ValueError for another one than was recorded, if one was."""
    if facts["fingerprint"] not in (None, fingerprint):
        raise ValueError(
            f"the text encoder {name} has other {what} than the one that the model was "
            f"trained with: fingerprint {fingerprint[:12]}, recorded {facts['fingerprint'][:12]}; "
            f"bring back the {what} it had"
        )


def _absolute(source: str) -> str:
    """A local folder's whole path; a hub name stays."""
    local = Path(source).expanduser()
    return str(local.resolve()) if local.exists() else source


def load_frozen(
    kind: str,
    source: str,
    title: str,
    network_class: str | None = None,
    processors: Sequence[str] = ("AutoTokenizer",),
) -> tuple:
    """A network of transformers, and its tokenizer or what else it has, by names of classes.

    It is in float32, in evaluation mode, without gradients, on the CPU; its class is by default
    the one that reads the text alone. ``title`` is the flag with its value: a source that is no
    such model is a ValueError.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{title} needs a package: pip install transformers") from None
    transformers.utils.logging.disable_progress_bar()
    # A folder, or a name on the hub; the oldest, such as bert-base-uncased, have no user in front.
    local, where, is_cut_off = Path(source).expanduser(), "", True
    if not local.is_dir():
        if not (is_hub_name(source) or re.fullmatch(r"\w[\w.-]*", source)):
            raise ValueError(f"{title}: no such folder (and no hub name, user/model)")
        is_cut_off = not hub_answers(source)
        where = " (the Hugging Face hub is out of reach)" if is_cut_off else ""
    name = str(local) if local.is_dir() else source

    def read(cls: type, **options):
        try:
            with quietly(is_cut_off):  # what it would say of missing weights is checked below
                return cls.from_pretrained(name, **options)
        except (OSError, RuntimeError, ImportError, ValueError) as error:
            raise ValueError(
                f"{title}: transformers reads no model from there{where}; "
                f"give a folder with config.json, weights and tokenizer files: {error}"
            ) from error

    model_type = read(transformers.AutoConfig).model_type
    types, text_class = _FAMILIES[kind]
    if not re.fullmatch(types, model_type):
        near = [family for family in _FAMILIES if family in model_type]
        hint = f"write {near[0]}:{source}" if near else f"known are {', '.join(_FAMILIES)}"
        raise ValueError(f"{title}: the model there is a {model_type}, no {kind}; {hint}")
    network_class = getattr(transformers, network_class or text_class)
    network, info = read(network_class, output_loading_info=True)
    parts = [read(getattr(transformers, name)) for name in processors]
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # some files lack its weights, and nothing here asks for it
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing or info["error_msgs"]:
        problems = listed(missing or list(info["error_msgs"]))
        raise ValueError(f"{title}: weights are missing there: {problems}")
    return network.float().eval().requires_grad_(False), *parts


@contextlib.contextmanager
def quietly(is_cut_off: bool) -> Iterator[None]:
    """While a library reads a model, it logs nothing; if so, it looks into the hub's cache alone.

    Else it would ask for each file, again and again for up to a minute.
    """
    before = logging.root.manager.disable, constants.HF_HUB_OFFLINE
    logging.disable(logging.ERROR)
    constants.HF_HUB_OFFLINE = before[1] or is_cut_off
    try:
        yield
    finally:
        logging.disable(before[0])
        constants.HF_HUB_OFFLINE = before[1]
