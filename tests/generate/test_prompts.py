import pytest

from wfimagevae.generate.subjects import Prompt, free_names, named_prompts, read_prompts, slug


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red circle!", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("Ein Müller, 3 Kühe", "ein-müller-3-kühe"),
        ("", "no-prompt"),
        ("...", "no-prompt"),
        ("word " * 40, "-".join(["word"] * 12)),
    ],
)
def test_a_slug_is_a_short_safe_name(text, name):
    assert slug(text) == name


def test_a_folder_gives_its_files_names_and_a_file_its_lines(tmp_path):
    (tmp_path / "sunset.txt").write_text("\ufeffa sunset\nover the sea\n", encoding="utf-8")
    (tmp_path / "dawn.TXT").write_text("a dawn")
    (tmp_path / "notes.md").write_text("no prompt")
    assert read_prompts(tmp_path) == [
        Prompt("a dawn", "dawn"),
        Prompt("a sunset over the sea", "sunset"),
    ]
    lines = tmp_path / "all.list"
    lines.write_text("a cat\n\na dog \n")
    assert read_prompts(lines) == named_prompts(["a cat", "a dog"])


def test_paths_without_prompts_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no such folder or file"):
        read_prompts(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no prompts; looked for \.txt files"):
        read_prompts(tmp_path)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="looked for a prompt a line"):
        read_prompts(tmp_path / "empty")
    (tmp_path / "full.txt").write_text("a cat")
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"blank\.txt holds no text"):
        read_prompts(tmp_path)


def test_names_are_free_and_numbered(tmp_path):
    stems = ["sunset", "sunset", "dawn", "grid", "sunset"]
    names = ["sunset", "sunset-1", "dawn", "grid_", "sunset-2"]
    assert free_names(tmp_path / "new", stems) == names
    (tmp_path / "sunset.png").touch()
    (tmp_path / "sunset-2.json").touch()
    (tmp_path / "dawn.txt").touch()
    names = ["sunset-1", "sunset-3", "dawn", "grid_", "sunset-4"]
    assert free_names(tmp_path, stems) == names


def test_a_name_that_another_prompt_has_of_itself_is_left_to_it(tmp_path):
    names = ["one", "one-2", "one-1", "one-1-1"]
    assert free_names(tmp_path, ["one", "one", "one-1", "one-1"]) == names
    assert free_names(tmp_path, ["grid-1", "samples"]) == ["grid-1_", "samples_"]
