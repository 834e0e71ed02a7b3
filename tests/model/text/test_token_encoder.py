"""GLIDE's tokens against byte pairs merged in plain Python, and what its encoder promises."""

import json
import logging
import re
import sys
from itertools import pairwise

import pytest
import torch

from tests.model.text.vocabulary import FILES, PADDING, TEXTS, write_vocabulary
from wfimagevae.model.glide.glide import Glide
from wfimagevae.model.text import open_text_encoder

WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?[a-z]+| ?[0-9]+| ?[^\sa-z0-9]+|\s+(?!\S)|\s+"
PROMPTS = [*TEXTS, "", "A Red Barn, 3 birds!", "  two  spaces ", "it's", "x<|endoftext|>", " \n "]


@pytest.fixture
def folder(tmp_path):
    write_vocabulary(tmp_path / "v")
    return tmp_path / "v"


def plain_ids(text, vocabulary, merges):
    """Byte pairs of an ASCII text as Sennrich et al. 2016 merge them: the earliest rule first."""
    ranks, ids = {tuple(pair): i for i, pair in enumerate(merges)}, []
    for word in re.findall(WORDS, text.lower()):
        parts = [{" ": "Ġ", "\n": "Ċ"}.get(letter, letter) for letter in word]
        while True:
            pairs = [ranks.get(pair, len(merges)) for pair in pairwise(parts)]
            if not pairs or min(pairs) == len(merges):
                break
            i = pairs.index(min(pairs))
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        ids += [vocabulary[part] for part in parts]
    return ids


def test_ids_are_those_of_byte_pairs_of_small_letters_in_either_files(tmp_path):
    encoded, facts = {}, []
    for files in FILES:
        vocabulary, merges = write_vocabulary(tmp_path / files, files)
        encoder = open_text_encoder(f"gpt2:{tmp_path / files}", "cpu")
        encoded[files], facts = encoder(PROMPTS), [*facts, encoder.facts]
        sizes = {"vocab_size": len(vocabulary), "text_length": 128}
        assert encoder.config_keys == sizes and encoder.unit == "tokens"
    assert facts[0]["fingerprint"] == facts[1]["fingerprint"]
    ids, mask = encoded["hub"]["ids"], encoded["hub"]["mask"]
    for i, prompt in enumerate(PROMPTS):
        expected = plain_ids(prompt if prompt.strip() else "", vocabulary, merges)
        assert ids[i, mask[i]].tolist() == expected, prompt
        assert encoder.tokenise([prompt])["lengths"] == [len(expected)]
        assert ids[i].tolist()[len(expected) :] == [vocabulary[PADDING]] * (128 - len(expected))
    assert all(torch.equal(encoded["openai"][key], encoded["hub"][key]) for key in ("ids", "mask"))
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    # Common words are one token, in capitals as well.
    assert len(plain_ids("A RED CIRCLE", vocabulary, merges)) < 6


def test_an_empty_prompt_is_the_null_condition_and_cuts_are_told_once(folder, caplog):
    encoder = open_text_encoder(f"gpt2:{folder}", "cpu", 5)
    with torch.device("meta"):
        sizes = {"text_width": 32, "text_depth": 0, "base_channels": 64, "channel_mult": [1]}
        network = Glide(**sizes, **encoder.config_keys)
    null = network.null_condition(2, "cpu")
    assert all(torch.equal(part, null[key]) for key, part in encoder(["", " \n"]).items())
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        ids = encoder(["zebra crossings", "another that is too long"])["ids"]
        encoder(["zebra crossings"])
    whole = open_text_encoder(f"gpt2:{folder}", "cpu")(["zebra crossings"])["ids"]
    assert torch.equal(ids[0], whole[0, :5])
    assert len(caplog.records) == 1 and "is cut to the network's 5 tokens" in caplog.text


def test_facts_bring_it_back_and_tell_of_another_vocabulary(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    first = open_text_encoder("gpt2:v", "cpu", 9)
    monkeypatch.chdir("/")
    again = open_text_encoder(json.loads(json.dumps(first.facts)), "cpu")
    assert again.facts == first.facts and again.config_keys == first.config_keys
    assert torch.equal(again(PROMPTS)["ids"], first(PROMPTS)["ids"])
    merges = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:-1]))
    with pytest.raises(ValueError, match="has other vocabulary than the one that the model was"):
        open_text_encoder(first.facts, "cpu")


def test_what_is_no_vocabulary_is_refused_at_once(folder, monkeypatch):
    def refused(message, spec=f"gpt2:{folder}"):
        with pytest.raises(ValueError, match=message):
            open_text_encoder(spec, "cpu")

    refused("missing/there does not exist .*; give gpt2:FOLDER", f"gpt2:{folder}/missing/there")
    refused("no vocabulary there; it needs encoder.json and vocab.bpe", f"gpt2:{folder.parent}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("gpt2:a/b .*cannot be had from the Hugging Face hub: .*; give gpt2:FOLDER", "gpt2:a/b")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for words, message in (
        ("[1, 2]", "vocab.json and merges.txt are no vocabulary"),
        ("{", "vocab.json and merges.txt are no vocabulary"),
        (json.dumps(vocabulary | {"more": len(vocabulary)}), "is not the last of the"),
        (json.dumps({"a": 0, PADDING: 1}), f"gpt2:{folder}: "),  # merges of what is not in it
    ):
        (folder / "vocab.json").write_text(words)
        refused(message)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused("pip install tokenizers")


def test_a_name_is_read_from_the_cache(tmp_path, monkeypatch):
    cache = tmp_path / "models--openai-community--gpt2"
    write_vocabulary(cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = open_text_encoder("gpt2", "cpu")
    assert encoder.facts["source"] == "openai-community/gpt2"
    assert encoder.tokenise(TEXTS[:1])["lengths"] == [7]
