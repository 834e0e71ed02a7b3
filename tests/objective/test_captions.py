"""Statistics of captions, as training logs them, whatever reads the data."""

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from tests.dataset.reading import read_by
from tests.model.text.tiny_encoders import write_encoder
from wfimagevae.dataset import TrainImageDataset, TrainLoader
from wfimagevae.engine.report.progress import Means
from wfimagevae.model.text import open_text_encoder
from wfimagevae.objective.noise_prediction import caption_statistics

CPU = torch.device("cpu")
CAPTIONS = ["four", "a longer one", " \n", "", "ninechars", "über"]


def test_figures_are_pooled_over_batches_of_any_content():
    encoder, means = open_text_encoder("bytes", CPU, 8), Means()
    for batch in (CAPTIONS[:2], CAPTIONS[2:4], CAPTIONS[4:]):
        means.add(caption_statistics({"caption": batch}, encoder, CPU))
    assert means.fetch() == {
        "train/caption_length": pytest.approx((4 + 12 + 9 + 5) / 4),  # ü has two bytes
        "train/captions_cut": pytest.approx(2 / 6),
        "train/captions_empty": pytest.approx(2 / 6),
    }
    # No length where nothing is written.
    means.add(caption_statistics({"caption": ["", " "]}, encoder, CPU))
    assert means.fetch() == {"train/captions_cut": 0.0, "train/captions_empty": 1.0}


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_lengths_are_those_of_the_encoders_own_tokens(tmp_path, kind):
    write_encoder(tmp_path, kind)
    encoder = open_text_encoder(f"{kind}:{tmp_path / kind}", CPU, 6)
    prompts = ["a circle", "a big red circle on the left of a small circle"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind)
    lengths = encoder.tokenise(prompts)["lengths"]
    assert lengths == [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert encoder.tokenise(prompts[:1])["lengths"] == lengths[:1]
    assert lengths[0] <= 6 < lengths[1] and int(encoder(prompts)["mask"][1].sum()) == 6
    cut = caption_statistics({"caption": prompts}, encoder, CPU)["train/captions_cut"]
    assert cut.tolist() == [1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["bytes", "t5"])
def test_workers_tokenise_and_their_number_changes_nothing(tmp_path, kind, num_workers, capfd):
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (10, 10)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption, encoding="utf-8")
    dataset = TrainImageDataset(tmp_path, 8, captions="sidecar")
    write_encoder(tmp_path, "t5")
    spec = kind if kind == "bytes" else f"{kind}:{tmp_path / kind}"
    encoder, means = open_text_encoder(spec, CPU, 8), Means()
    encoder(CAPTIONS)  # as a validation before the first step
    loader = TrainLoader(dataset, 4, read_by(num_workers), tokenise=encoder.tokenise)
    for _ in range(3):  # two epochs
        batch = next(loader)
        means.add(caption_statistics(batch, encoder, CPU))
        whole, told = encoder(batch["caption"]), encoder(batch["caption"], batch["text"])
        assert all(torch.equal(told[name], part) for name, part in whole.items())
    loader.close()
    figures = means.fetch()
    assert figures["train/captions_empty"] == pytest.approx(1 / 3)
    if kind == "bytes":
        assert figures["train/captions_cut"] == pytest.approx(1 / 3)
        assert figures["train/caption_length"] == pytest.approx(7.5)
    assert "fork" not in capfd.readouterr().err  # as tokenizers warn whose threads are lost
