"""GPT-2's byte-level byte pairs, read from the files of its vocabulary, through tokenizers.

Source: Radford et al. 2019 (GPT-2); GLIDE lowers the letters first.
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wfimagevae.files import is_hub_name
from wfimagevae.model.weight_files import hub_answers

HUB_NAME = "openai-community/gpt2"
PADDING = "<|endoftext|>"
# The vocabulary and its merges: as OpenAI names them, and as on the hub.
_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class BytePairs:
    """Ids of the tokens of texts in small letters; ``fingerprint`` is SHA-256 of the vocabulary.

    ``source`` is a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, each also
    as .gz; or a hub name, whose files are downloaded if they are not cached. ValueError for a
    source without a vocabulary, or one whose last token is not <|endoftext|>, the padding.
    """

    def __init__(self, source: str):
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers
        except ImportError:
            raise ValueError(
                "--text_encoder gpt2 needs a package: pip install tokenizers"
            ) from None
        vocabulary, merges = _read(source)
        self.fingerprint = hashlib.sha256(
            json.dumps([vocabulary, merges], sort_keys=True).encode()
        ).hexdigest()
        self.size = len(vocabulary)
        if vocabulary.get(PADDING) != self.size - 1:
            raise ValueError(
                f"--text_encoder gpt2:{source}: {PADDING}, which pads, is not the last of the "
                f"{self.size} tokens"
            )
        try:
            self._tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # of no class of its own
            raise ValueError(f"--text_encoder gpt2:{source}: {error}") from error
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [text.lower() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]


def _read(source: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of tokens, and pairs to merge in their order; ValueError if they cannot be had."""
    folder = Path(source).expanduser()
    names = [(one + end, two + end) for one, two in _FILES for end in ("", ".gz")]
    if folder.is_dir():
        found = [pair for pair in names if all((folder / name).is_file() for name in pair)]
        if not found:
            raise ValueError(
                f"--text_encoder gpt2:{source}: no vocabulary there; it needs encoder.json and "
                "vocab.bpe, or vocab.json and merges.txt, each also as .gz"
            )
        paths = [folder / name for name in found[0]]
    elif is_hub_name(source):
        paths = _download(source)
    else:
        raise ValueError(
            f"--text_encoder gpt2:{source}: no such folder (and no hub name, user/model)"
        )
    try:
        words, pairs = (_text(path) for path in paths)
        vocabulary = {str(token): int(number) for token, number in json.loads(words).items()}
        lines = [line for line in pairs.splitlines() if line and not line.startswith("#version")]
        merges = [(one, two) for one, two in (line.split() for line in lines)]
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        names = " and ".join(path.name for path in paths)
        raise ValueError(
            f"--text_encoder gpt2:{source}: {names} are no vocabulary: {error}"
        ) from error
    return vocabulary, merges


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def _download(name: str) -> list[Path]:
    """The two files of a vocabulary from the hub, or from the cache where it is out of reach."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    # Asked once, not again and again for each file, where there is no answer.
    is_cut_off = not hub_answers(name)
    try:
        return [
            Path(hf_hub_download(name, file, local_files_only=is_cut_off)) for file in _FILES[1]
        ]
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--text_encoder gpt2:{name}: the vocabulary is neither cached nor to be had from the "
            f"Hugging Face hub; give gpt2:FOLDER with encoder.json and vocab.bpe: {reason}"
        ) from error
