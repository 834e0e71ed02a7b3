"""Text in flow training: the encoder, its captions, and what the network is told."""

import logging
from collections.abc import Callable

import torch

from wfimagevae.dataset.protocol import FlowData
from wfimagevae.diffusion.guidance import Condition
from wfimagevae.generate.generator_files import find_generator_facts
from wfimagevae.generate.subjects import Subject
from wfimagevae.model.text import TextEncoder, open_text_encoder

logger = logging.getLogger(__name__)
_CACHED = ("tokens", "mask", "pooled")


def check_text_options(options: dict) -> None:
    """Raises ValueError for flags of text that would do nothing."""
    names = ("captions", "fixed_prompt_prefix", "text_length", "text_attention", "sample_prompts")
    given = [name for name in names if options[name] not in (None, "", "none")]
    if options["skip_words"] or options["languages"]:  # captions decide which images are taken
        given = [name for name in given if name != "captions"]
    if given and not options["text_encoder"]:
        raise ValueError(f"--{given[0]} is for flows that take text: give --text_encoder as well")
    if options["captions"] != "none" and options["dataset"] != "images":
        raise ValueError(
            f"--captions {options['captions']} is for --dataset images; shapes and latents bring "
            "their own captions"
        )


def open_encoder(
    options: dict, dataset: FlowData, device: torch.device, held_out: FlowData | None = None
) -> TextEncoder | None:
    """The text encoder that the flags name; None without one.

    Raises:
        ValueError: training or held-out data without captions, or embeddings of another encoder
            cached beside it.
    """
    spec = options["text_encoder"]
    if not spec:
        return None
    parts = {"this data": dataset} | ({} if held_out is None else {"the held-out data": held_out})
    for name, part in parts.items():
        if not part.has_captions:
            raise ValueError(
                f"--text_encoder {spec} needs captions, which {name} does not have: give "
                "--captions for images; latents must have been cached with them"
            )
    cached = {
        name: part.text_facts
        for name, part in parts.items()
        if part.data_key == "latent" and part.text_facts
    }
    lengths = [options["text_length"], *(facts["length"] for facts in cached.values())]
    encoder = open_text_encoder(spec, device, next(filter(None, lengths), None))
    for name, facts in cached.items():
        _check_cached(spec, encoder, name, facts)
    return encoder


def _check_cached(spec: str, encoder: TextEncoder, name: str, cached: dict) -> None:
    """Raises ValueError for embeddings that this encoder did not make."""
    names = ("kind", "length", "fingerprint")
    if wrong := [fact for fact in names if encoder.facts[fact] != cached[fact]]:
        was = f"{cached['kind']}:{cached['source']}, length {cached['length']}"
        raise ValueError(
            f"--text_encoder {spec}: another {' and '.join(wrong)} than that of the encoder whose "
            f"embeddings are cached with {name} ({was}, weights {cached['fingerprint'][:12]}); "
            "give that one, or cache these latents anew"
        )


def warn_of_another_encoder(pretrained: str, text: TextEncoder | None) -> None:
    """Warns where weights to start from learned texts as another encoder gives them."""
    before = (find_generator_facts(pretrained) or {}).get("text")
    if text is None or not before:
        return
    if any(before[fact] != text.facts[fact] for fact in ("kind", "fingerprint")):
        names = [
            ":".join(filter(None, (facts["kind"], facts["source"])))
            for facts in (before, text.facts)
        ]
        logger.warning(
            "%s learned the texts of %s; those of %s mean nothing to it until it has learned anew",
            pretrained,
            *names,
        )


def condition_of_batches(
    num_classes: int, text: TextEncoder | None
) -> Callable[[dict], Condition | None]:
    """What a network is told of a batch: its classes, its captions, both, or nothing.

    Args:
        num_classes: 0 leaves the classes out.
        text: Encodes captions, unless the batch brings them encoded; None leaves them out.
    """

    def condition(batch: dict) -> Condition | None:
        if text is None:
            return batch["label"] if num_classes else None
        cached = {name: batch[name] for name in _CACHED if name in batch}
        encoded = cached or text(batch["caption"])
        return {"label": batch["label"]} | encoded if num_classes else encoded

    return condition


def picture_subjects(options: dict, held_out: FlowData, num_classes: int) -> list[Subject]:
    """What validation pictures show: the prompts asked for, or different held-out captions.

    A flow with classes gets the held-out classes besides. Without text there is nothing to choose.
    """
    if not options["text_encoder"]:
        return []
    if options["sample_prompts"]:
        return [Subject(0, prompt=prompt) for prompt in options["sample_prompts"]]
    count = max(round(options["eval_num_images"] ** 0.5), 1)
    batch = held_out.read_batch(list(range(min(4 * count, len(held_out)))))
    labels = batch["label"].tolist() if num_classes else [None] * len(batch["caption"])
    found = dict(zip(batch["caption"], labels, strict=True))
    found.pop("", None)
    return [Subject(0, label, caption) for caption, label in found.items()][:count]
