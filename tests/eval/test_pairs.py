from tests.refusals import refused
from wfimagevae.eval.pairs import match_pairs, output_names


def test_a_reconstruction_keeps_path_and_name_and_overwrites_no_other():
    names = output_names(["a/x.JPEG", "b/x.png", "x.tar.webp"], "png")
    assert names == {"a/x.JPEG": "a/x.png", "b/x.png": "b/x.png", "x.tar.webp": "x.tar.png"}
    real = ["a/x.jpg", "a/x.png", "a/y.jpg"]
    names = output_names(real, "png")
    assert len(set(names.values())) == 3
    assert match_pairs(real, sorted(names.values())) == list(names.items())
    for path in ("origin/x.png", "origin/deep/x.png"):  # where originals are kept
        refused("origin", output_names, ["a.png", path], "png")


def test_pairs_are_made_by_relative_path_outside_the_reserved_folder():
    real = ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    expected = list(zip(real, ["a/1.png", "a/2.png", "b/1.png"], strict=True))
    assert match_pairs(real, [generated for _, generated in reversed(expected)]) == expected
    real = ["a.png", "deep/origin/a.png"]
    generated = [*real, "origin/a.png", "origin/other.png"]
    assert [pair[1] for pair in match_pairs(real, generated)] == real


def test_missing_and_several_partners_are_listed():
    both = r"1 originals have no reconstruction: a\.jpg; 1 generated .* no original: c\.png"
    refused(both, match_pairs, ["a.jpg", "b.jpg"], ["b.png", "c.png"])
    many = [f"{i:02d}.png" for i in range(25)]
    refused(r"25 originals.*09\.png and 15 more", match_pairs, many, [])
    several = r"several reconstructions: a\.png, a\.webp"
    refused(several, match_pairs, ["a.jpg"], ["a.webp", "a.png"])


def test_a_subset_finds_its_reconstructions_among_others():
    assert match_pairs(["b.jpg"], ["a.png", "b.png"], is_subset=True) == [("b.jpg", "b.png")]
    refused(r"c\.jpg", match_pairs, ["c.jpg"], ["a.png", "b.png"], is_subset=True)
    names = output_names(["x.jpg", "x.png"], "png")
    assert match_pairs(["x.jpg"], list(names.values()), is_subset=True) == [("x.jpg", "x.jpg.png")]
    assert match_pairs(["a.jpg"], ["a.jpg", "a.png"], is_subset=True) == [("a.jpg", "a.jpg")]
