"""CLIP networks, which embed images and texts where those that belong together are near.

By open_clip's names, or from files; Radford et al. 2021, arXiv:2103.00020.
"""

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from wfimagevae.files import read_torch_file
from wfimagevae.model.losses.lpips_network import MissingWeights
from wfimagevae.model.text import TextEncoder, load_frozen, quietly
from wfimagevae.model.weight_files import hub_answers

_KIND = "clip:"  # before the folder or hub name of a model of transformers, as of text encoders
# What open_clip raises where there are no weights, or others.
_FAILURES = (RuntimeError, OSError, ValueError, KeyError, AssertionError, SafetensorError)
_log = logging.getLogger(__name__)


class Clip:
    """A CLIP network in float32, in evaluation mode, without gradients, on the CPU at first.

    ``name`` says which, and ``package`` whose, for records. ``embed_images`` gives embeddings,
    (B, D), of 8-bit RGB images of any size, (B, 3, H, W), and ``embed_texts`` pooled ones of texts.
    Texts that are too long are cut; a warning says so once.
    """

    package: str
    embed_images: Callable[[Tensor], Tensor]
    embed_texts: Callable[[Sequence[str]], Tensor]

    def __init__(self, name: str, network: nn.Module):
        self.name, self._has_warned = name, False
        self.network = network.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _warn_of_cut(self, is_cut: Sequence[bool], texts: Sequence[str], length: int) -> None:
        if any(is_cut) and not self._has_warned:
            message = "CLIP %s reads %d tokens: a prompt is cut, others may be as well: %.60r ..."
            _log.warning(message, self.name, length, texts[list(is_cut).index(True)])
            self._has_warned = True


class TransformersClip(Clip):
    """A CLIPModel of transformers, with its tokenizer and image processor."""

    package = "transformers"

    def __init__(self, source: str):
        parts = ("AutoTokenizer", "AutoImageProcessor")
        network, self._tokenizer, self._processor = load_frozen(
            "clip", source, f"--clip_model {source}", "CLIPModel", parts
        )
        places = network.config.text_config.max_position_embeddings
        self.length = min(self._tokenizer.model_max_length, places)
        super().__init__(f"{_KIND}{source}", network)

    def embed_images(self, pixels: Tensor) -> Tensor:
        inputs = self._processor(images=list(pixels.cpu()), return_tensors="pt")
        return self.network.get_image_features(**inputs.to(self.device)).pooler_output

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        whole = self._tokenizer(list(texts), verbose=False)["input_ids"]
        self._warn_of_cut([len(ids) > self.length for ids in whole], texts, self.length)
        how = {"padding": True, "truncation": True, "max_length": self.length}
        inputs = self._tokenizer(list(texts), **how, return_tensors="pt").to(self.device)
        inputs.pop("token_type_ids", None)
        return self.network.get_text_features(**inputs).pooler_output


class OpenClip(Clip):
    """A network of open_clip: an architecture with public weights, or with those of a file.

    ``local-dir:FOLDER`` in place of the architecture, without weights, is what open_clip saves.
    """

    package = "open_clip_torch"

    def __init__(self, architecture: str, weights: str | None):
        import open_clip

        name = f"{architecture}/{weights}" if weights else architecture
        is_file = weights is None or Path(weights).is_file()
        if is_file and weights and not weights.endswith(".safetensors"):
            read_torch_file(Path(weights))  # which says what is wrong with it
        # OpenAI's networks, and some that follow them, have an activation of their own.
        tag = open_clip.get_pretrained_cfg(architecture, weights or "")
        hub_name = "/".join((tag.get("hf_hub") or "").split("/")[:2])  # in front of a file's name
        how = {"precision": "fp32", "force_quick_gelu": bool(tag.get("quick_gelu"))}
        try:
            with quietly(is_cut_off=bool(hub_name) and not hub_answers(hub_name)):
                network, self._prepare = open_clip.create_model_from_pretrained(
                    architecture, weights, **how
                )
                self._tokenizer = open_clip.get_tokenizer(architecture)
        except _FAILURES as error:
            reason = str(error).splitlines()[0][:120]
            if is_file:
                raise ValueError(f"--clip_model {name} holds no such network: {reason}") from error
            raise MissingWeights(
                f"--clip_model {name} is neither cached nor downloadable ({reason}). Fetch it on a "
                f"machine with a network, then write --clip_model {architecture}/FILE, or "
                "--clip_model FOLDER of a CLIPModel of transformers"
            ) from error
        super().__init__(name, network)

    def embed_images(self, pixels: Tensor) -> Tensor:
        images = [self._prepare(to_pil_image(image)) for image in pixels.cpu()]
        return self.network.encode_image(torch.stack(images).to(self.device))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(texts))  # (B, L), zeros behind the end
        self._warn_of_cut((tokens[:, -1] != 0).tolist(), texts, tokens.shape[1])
        return self.network.encode_text(tokens.to(self.device))


class TokensAndClip(TextEncoder):
    """Tokens of a text, and ``clip`` (B, D), CLIP's embedding of it, zeros of an empty one."""

    def __init__(self, tokens: TextEncoder, spec: str, device: torch.device):
        super().__init__(tokens.facts | {"clip": spec}, **tokens.config_keys)
        self.tokens, self.clip, self.tokenise = tokens, load_clip(spec), tokens.tokenise
        self.clip.network.to(device)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], tokens: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        parts = self.tokens(prompts, tokens)
        is_text = parts["mask"].any(1, keepdim=True)
        with torch.autocast(is_text.device.type, enabled=False):
            embedded = self.clip.embed_texts(prompts).float()
        return parts | {"clip": embedded.to(is_text.device) * is_text}


def load_clip(spec: str) -> Clip:
    """The CLIP network that a flag names.

    ``spec`` is an architecture of open_clip, alone (with OpenAI's weights where there are some),
    or with a tag of public weights or a file behind a slash: ``ViT-L-14``, ``ViT-L/14``,
    ``ViT-L-14/laion2b_s32b_b82k``, ``ViT-L-14/clip.pt``; a folder that transformers or open_clip
    saved; or ``clip:`` and a folder or hub name of a CLIPModel of transformers.

    Raises:
        MissingWeights: public weights that are not cached and cannot be downloaded.
        ValueError: no such model, with the names that are near; a package that is missing; files
            that hold something else.
    """
    folder = Path(spec).expanduser()
    if spec.startswith(_KIND):
        return TransformersClip(spec.removeprefix(_KIND))
    if (folder / "open_clip_config.json").is_file():
        return OpenClip(f"local-dir:{folder}", None)
    if folder.is_dir():
        return TransformersClip(str(folder))
    try:
        import open_clip
    except ImportError:
        raise ValueError(
            f"--clip_model {spec} needs a package: pip install open_clip_torch; without it, give "
            f"{_KIND}PATH_OR_NAME of a CLIPModel of transformers"
        ) from None

    # The architecture's name may have a slash in it, as OpenAI writes it.
    architectures, parts = open_clip.list_models(), spec.split("/")
    heads = {"-".join(parts[:n]): "/".join(parts[n:]) for n in range(1, len(parts) + 1)}
    known = [head for head in heads if head in architectures]
    if not known:
        near = [name for head in heads for name in difflib.get_close_matches(head, architectures)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else "."
        raise ValueError(
            f"--clip_model {spec!r} is no folder, and no model of open_clip{hint} Write one such "
            "as ViT-L-14, ViT-L-14/laion2b_s32b_b82k, ViT-L-14/FILE or clip:FOLDER"
        )
    architecture = known[-1]
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    weights = heads[architecture] or next(iter(sorted(tags, key=lambda tag: tag != "openai")), "")
    file = Path(weights).expanduser()
    if weights not in tags and not file.is_file():
        near = difflib.get_close_matches(weights, tags) or tags or ["none"]
        raise ValueError(
            f"--clip_model {spec!r}: {weights!r} is no file, and no public weights of "
            f"{architecture}; there is {', '.join(near)}"
        )
    return OpenClip(architecture, weights if weights in tags else str(file))
