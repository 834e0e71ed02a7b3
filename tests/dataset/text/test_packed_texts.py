import numpy as np

from wfimagevae.dataset.text.packed_texts import PackedTexts

TEXTS = [b"one", b"", "drei é".encode(), b"4444", b""]


def test_texts_come_back_whole_selected_and_concatenated():
    packed = PackedTexts.pack(TEXTS)
    assert [packed[i] for i in range(len(packed))] == TEXTS
    some = packed.select([3, 1, 0, 3])
    assert [some[i] for i in range(4)] == [b"4444", b"", b"one", b"4444"]
    both = PackedTexts.concatenate([some, PackedTexts.pack([]), packed])
    assert [both[i] for i in range(9)] == [b"4444", b"", b"one", b"4444", *TEXTS]
    assert len(packed.select(np.array([], np.int64))) == 0
    assert len(PackedTexts.concatenate([])) == 0
