import numpy as np
import pytest

from wfimagevae.dataset.text import packed_texts
from wfimagevae.dataset.text.packed_texts import PackedTexts


@pytest.fixture
def texts():
    """Texts of 0 to 40 bytes of few kinds, so that many are equal or begin alike."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 41, 3000)
    letters = np.array([1, 47, 97, 255], np.uint8)
    return [letters[rng.integers(0, 4 if n % 2 else 1, n)].tobytes() for n in lengths]


def test_order_is_that_of_bytes_and_stable(texts):
    assert len(set(texts)) < len(texts)
    expected = sorted(range(len(texts)), key=texts.__getitem__)
    assert PackedTexts.pack(texts).argsort().tolist() == expected
    assert PackedTexts.pack([]).argsort().tolist() == []
    assert PackedTexts.pack([b"", b""]).argsort().tolist() == [0, 1]


@pytest.mark.parametrize("part", [7, 1000, 2**10])
def test_selection_is_what_was_asked_for(monkeypatch, texts, part):
    monkeypatch.setattr(packed_texts, "_PART", part)
    packed = PackedTexts.pack(texts)
    for rows in ([], [0], [2999, 0, 5, 5], np.random.default_rng(1).integers(0, 3000, 3000)):
        assert list(packed.select(rows)) == [texts[row] for row in rows]
    assert packed.select(range(3000)) is packed
