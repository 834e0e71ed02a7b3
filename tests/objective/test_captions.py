"""Statistics of captions, as training logs them, whatever reads the data."""

import pytest
import torch
from PIL import Image

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
        means.add(caption_statistics(batch, encoder, CPU))
    assert means.fetch() == {
        "train/caption_length": pytest.approx((4 + 12 + 9 + 5) / 4),  # ü has two bytes
        "train/captions_cut": pytest.approx(2 / 6),
        "train/captions_empty": pytest.approx(2 / 6),
    }
    means.add(caption_statistics(["", " "], encoder, CPU))  # no length where nothing is written
    assert means.fetch() == {"train/captions_cut": 0.0, "train/captions_empty": 1.0}


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_lengths_are_those_of_the_encoders_own_tokens(tmp_path, kind):
    write_encoder(tmp_path, kind)
    encoder = open_text_encoder(f"{kind}:{tmp_path / kind}", CPU, 6)
    prompts = ["a circle", "a big red circle on the left of a small circle"]
    lengths = encoder.lengths(prompts)
    assert lengths == [len(encoder.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] <= 6 < lengths[1] and int(encoder(prompts)["mask"][1].sum()) == 6
    cut = caption_statistics(prompts, encoder, CPU)["train/captions_cut"]
    assert cut.tolist() == [1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_number_of_workers_logs_the_same(tmp_path, num_workers):
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (10, 10)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption, encoding="utf-8")
    dataset = TrainImageDataset(tmp_path, 8, captions="sidecar")
    loader = TrainLoader(dataset, 4, read_by(num_workers))
    encoder, means = open_text_encoder("bytes", CPU, 8), Means()
    for _ in range(3):  # two epochs
        means.add(caption_statistics(next(loader)["caption"], encoder, CPU))
    loader.close()
    figures = means.fetch()
    assert figures["train/captions_cut"] == figures["train/captions_empty"] == pytest.approx(1 / 3)
    assert figures["train/caption_length"] == pytest.approx(7.5)
