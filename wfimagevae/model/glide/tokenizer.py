"""GPT-2's byte-level byte pairs, read from the files of its vocabulary, through tokenizers.

Source: Radford et al. 2019 (GPT-2); GLIDE lowers the letters first.
"""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from wfimagevae.model.weight_files import download

HUB_NAME = "openai-community/gpt2"
PADDING = "<|endoftext|>"
# The vocabulary and its merges: as OpenAI names them, and as on the hub.
_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


def load_byte_pairs(source: str) -> tuple[Any, str]:
    """The tokenizer of a vocabulary, whose last token pads, and SHA-256 of the vocabulary.

    ``source`` is a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, each also
    as .gz; or a hub name, whose files are downloaded if they are not cached. ValueError for a
    source without a vocabulary, or one whose last token is not <|endoftext|>.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
    except ImportError:
        raise ValueError("--text_encoder gpt2 needs a package: pip install tokenizers") from None
    vocabulary, merges = _read(source)
    if vocabulary.get(PADDING) != len(vocabulary) - 1:
        raise ValueError(
            f"--text_encoder gpt2:{source}: {PADDING}, which pads, is not the last of the "
            f"{len(vocabulary)} tokens"
        )
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # of no class of its own
        raise ValueError(f"--text_encoder gpt2:{source}: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    content = json.dumps([vocabulary, merges], sort_keys=True).encode()
    return tokenizer, hashlib.sha256(content).hexdigest()


def _read(source: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of tokens, and pairs to merge in their order; ValueError if they cannot be had."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            folder = download(source, _FILES[1])
        except (FileNotFoundError, ValueError) as error:
            what = "gpt2:FOLDER with encoder.json and vocab.bpe"
            raise ValueError(f"--text_encoder gpt2:{error}; give {what}") from error
    names = [(one + end, two + end) for one, two in _FILES for end in ("", ".gz")]
    found = [pair for pair in names if all((folder / name).is_file() for name in pair)]
    if not found:
        raise ValueError(
            f"--text_encoder gpt2:{source}: no vocabulary there; it needs encoder.json and "
            "vocab.bpe, or vocab.json and merges.txt, each also as .gz"
        )
    paths = [folder / name for name in found[0]]
    try:
        texts = (path.read_bytes() for path in paths)
        words, pairs = (gzip.decompress(t) if paths[0].suffix == ".gz" else t for t in texts)
        vocabulary = {str(token): int(number) for token, number in json.loads(words).items()}
        lines = [
            line for line in pairs.decode().splitlines() if line and not line.startswith("#version")
        ]
        merges = [(one, two) for one, two in (line.split() for line in lines)]
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        names = " and ".join(path.name for path in paths)
        raise ValueError(
            f"--text_encoder gpt2:{source}: {names} are no vocabulary: {error}"
        ) from error
    return vocabulary, merges
