"""A vocabulary of byte pairs of some hundred tokens, in the files of GPT-2's."""

import gzip
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = ["an oil painting of a corgi", "a red circle on the left of a big blue square", "don't"]
FILES = {"hub": ("vocab.json", "merges.txt"), "openai": ("encoder.json.gz", "vocab.bpe.gz")}
PADDING = "<|endoftext|>"


def write_vocabulary(folder: Path, files: str = "hub") -> tuple[dict[str, int], list[list[str]]]:
    """Writes the two files; gives ids of tokens, of which the last is the padding, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    vocabulary[PADDING] = len(vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES[files], (json.dumps(vocabulary), "\n".join(lines)), strict=True):
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return vocabulary, merges
