"""Frozen text encoders against transformers itself, and the facts that all encoders obey."""

import json
import logging
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.text.tiny_encoders import NAMES, write_encoder
from wfimagevae.model.text import open_text_encoder

PROMPTS = ["a red circle", "", "a big blue square on the left of a small circle", "  \n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for name in NAMES:
        write_encoder(folder, name)
    return folder


def spec_of(folder, name):
    if name == "bytes":
        return name
    kind = "bert" if "bert" in name else name.split("-")[0]
    return f"{kind}:{folder / name}"


def opened(folder, name, length=None):
    return open_text_encoder(spec_of(folder, name), "cpu", length)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_transformers_for_each_prompt_alone(folder, name):
    from transformers import AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel

    classes = {"clip": CLIPTextModel, "t5": T5EncoderModel, "bert": AutoModel}
    kind = spec_of(folder, name).partition(":")[0]
    network = classes[kind].from_pretrained(folder / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    encoded = opened(folder, name)(PROMPTS)
    for i in (0, 2):
        ids = tokenizer(PROMPTS[i], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            output = network(input_ids=ids)
        tokens = output.last_hidden_state[0]
        mask = encoded["mask"][i]
        assert mask.tolist() == [True] * len(tokens) + [False] * (len(mask) - len(tokens))
        torch.testing.assert_close(encoded["tokens"][i, mask], tokens, rtol=1e-4, atol=1e-5)
        pooled = output.pooler_output[0] if kind == "clip" else tokens.mean(0)
        torch.testing.assert_close(encoded["pooled"][i], pooled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoded["pooled"][0], encoded["pooled"][2], atol=1e-3)


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_bf16_halves_an_encoder_and_is_remembered(folder, name):
    exact, half = (
        open_text_encoder(spec_of(folder, name), "cpu", precision=p) for p in ("fp32", "bf16")
    )
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    again = open_text_encoder(half.facts, "cpu")
    assert again.facts == half.facts == exact.facts | {"precision": "bf16"}
    one, two, three = (encoder(PROMPTS) for encoder in (exact, half, again))
    for key in ("tokens", "pooled"):
        assert two[key].dtype == torch.float32 and torch.equal(two[key], three[key])
        error = (two[key] - one[key]).norm() / one[key].norm()
        assert 0 < error < 0.03


def test_only_frozen_encoders_have_a_precision():
    with pytest.raises(ValueError, match="of frozen encoders, not of bytes"):
        open_text_encoder("bytes", "cpu", precision="bf16")


@pytest.mark.parametrize("name", ["clip", "t5", "bert", "roberta", "distilbert", "bytes"])
def test_longer_padding_and_other_prompts_beside_it_change_nothing(folder, name):
    short, long = (opened(folder, name, length) for length in (18, 20))
    alone, beside = short(PROMPTS[:1]), long([PROMPTS[2][:18], PROMPTS[0]])
    assert alone.keys() == beside.keys()
    for key, value in alone.items():
        rows = beside[key][1:]
        if key != "pooled":
            assert rows.shape[1] == 20 and value.shape[1] == 18
            assert not rows[:, 18:].any()
            rows = rows[:, :18]
        torch.testing.assert_close(rows, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "t5", "bert", "bytes"])
def test_empty_and_blank_prompts_are_the_null_condition_of_the_network(folder, name):
    from wfimagevae.model.flow.flow_transformer import FlowTransformer

    encoder = opened(folder, name, 12)
    sizes = {"input_size": 4, "hidden_size": 32, "depth": 1, "num_heads": 2, "byte_width": 32}
    network = FlowTransformer(**sizes, **encoder.config_keys)
    null = network.null_condition(2, "cpu")
    encoded = encoder(["", " \n "])
    assert encoded.keys() == null.keys()
    for key, value in null.items():
        assert encoded[key].dtype == value.dtype
        assert torch.equal(encoded[key], value)
    x, t = torch.randn(2, 4, 4, 4), torch.rand(2)
    assert network(x, t, encoder(["a red circle", ""])).shape == x.shape


@pytest.mark.parametrize("name", ["clip", "t5", "bert", "bytes"])
def test_long_prompts_are_cut_with_one_warning(folder, name, caplog):
    encoder = opened(folder, name, 6)
    words = ["a big red circle on the left", "a", "on the left of the big circle"]
    encoder(["a"])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        encoded = encoder(words)
        encoder(words)
    assert len(caplog.records) == 1
    assert "is cut to --text_length 6" in caplog.text
    for key in encoded.keys() - {"pooled"}:
        assert encoded[key].shape[1] == 6


def test_bytes_are_cut_between_characters_and_shifted_by_one():
    encoder = open_text_encoder("bytes", "cpu", 4)
    ids = encoder([" aé ", "abcé", "\x00"])["ids"]
    assert ids.tolist() == [[98, 0xC3 + 1, 0xA9 + 1, 0], [98, 99, 100, 0], [1, 0, 0, 0]]
    assert encoder.config_keys == {"text_encoder": "bytes", "text_length": 4}
    assert open_text_encoder("bytes", "cpu").config_keys["text_length"] == 128


@pytest.mark.parametrize("name", ["clip", "t5", "bert-pooler", "bytes"])
def test_facts_bring_an_encoder_back(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    kind = spec_of(folder, name).partition(":")[0]
    first = open_text_encoder(name if name == "bytes" else f"{kind}:{name}", "cpu", 9)
    monkeypatch.chdir("/")
    again = open_text_encoder(json.loads(json.dumps(first.facts)), "cpu")
    assert again.facts == first.facts and again.config_keys == first.config_keys
    for key, value in first(PROMPTS).items():
        assert torch.equal(again(PROMPTS)[key], value)
    if name != "bytes":
        assert not any(p.requires_grad for p in again.network.parameters())
        assert not again.network.training
    with pytest.raises(ValueError, match="--text_length 8 differs from the 9"):
        open_text_encoder(first.facts, "cpu", 8)


def test_length_is_the_models_own_where_that_is_less_than_usual(folder):
    sizes = {"text_length": 20, "text_width": 16, "pooled_width": 16}
    assert opened(folder, "bert").config_keys == {"text_encoder": "external"} | sizes
    with pytest.raises(ValueError, match=r"--text_length 21: clip:.* takes at most 20 tokens"):
        opened(folder, "clip", 21)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        open_text_encoder("bytes", "cpu", 0)


@pytest.fixture
def copied(folder, tmp_path):
    """Copies a folder and changes its weights by a function."""

    def copy(name, change):
        shutil.copytree(folder / name, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})
        return tmp_path

    return copy


def a_norm(weights):
    """The name of a norm's weight in the part that reads text."""
    parts = [key for key in weights if "vision" not in key and "decoder" not in key]
    return max(key for key in parts if "norm" in key.lower() and key.endswith("weight"))


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_other_weights_than_recorded_are_an_error(folder, copied, name):
    facts = opened(folder, name, 9).facts
    facts["source"] = str(copied(name, lambda weights: weights[a_norm(weights)].add_(1)) / name)
    with pytest.raises(ValueError, match="has other weights than the one that the model was"):
        open_text_encoder(facts, "cpu")


@pytest.mark.parametrize("name", ["clip", "t5", "bert"])
def test_missing_weights_are_an_error_and_never_made_up(copied, name):
    place = copied(name, lambda weights: weights.pop(a_norm(weights)))
    with pytest.raises(ValueError, match=rf"{name}:.*weights are missing there: .*(?i:norm)"):
        opened(place, name)


def test_a_missing_pooler_is_no_concern(folder, copied):
    """Many files of the BERT family come without one; nothing here asks for it."""
    with_pooler = opened(folder, "bert-pooler")

    def remove(weights):
        for key in [key for key in weights if "pooler" in key]:
            del weights[key]

    without = opened(copied("bert-pooler", remove), "bert-pooler")
    assert without.facts["fingerprint"] == with_pooler.facts["fingerprint"]


def test_what_is_no_encoder_is_refused_at_once(folder, tmp_path):
    start = time.perf_counter()
    for spec, message in (
        ("clip", "write bytes, gpt2, or one of clip:PATH, t5:PATH, bert:PATH"),
        ("clap:somewhere", "'clap:somewhere' names no text encoder"),
        ("bytes:somewhere", "names no text encoder"),
        (f"clip:{tmp_path}/missing", "no such folder"),
        ("t5:missing/folder/there", "no such folder .and no hub name"),
        (f"t5:{tmp_path}", "transformers reads no model from there; give a folder"),
        (f"t5:{folder / 'bert'}", "is a bert, no t5; write bert:"),
        (f"bert:{folder / 't5'}", "is a t5, no bert; write t5:"),
        (f"clip:{folder / 'distilbert'}", "is a distilbert, no clip; write bert:"),
    ):
        with pytest.raises(ValueError, match=message):
            open_text_encoder(spec, "cpu")
    assert time.perf_counter() - start < 5


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    from wfimagevae.model import text

    asked = []
    monkeypatch.setattr(text, "hub_answers", lambda name: bool(asked.append(name)))
    for name in ("nobody/nothing", "bert-nowhere-uncased"):  # the oldest models have no user
        with pytest.raises(ValueError, match="the Hugging Face hub is out of reach"):
            open_text_encoder(f"bert:{name}", "cpu")
    assert asked == ["nobody/nothing", "bert-nowhere-uncased"]


def test_transformers_missing_names_the_command(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        opened(folder, "clip")


@pytest.mark.gpu
def test_prompts_are_sent_to_a_gpu_that_is_busy_without_waiting_for_it():
    encoder = open_text_encoder("bytes", "cuda", 8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids = encoder(["a red circle", ""])["ids"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ids.cpu(), open_text_encoder("bytes", "cpu", 8)(["a red circle", ""])["ids"])
