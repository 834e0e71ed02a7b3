from tests.refusals import refused
from wfimagevae.generate.subjects import Prompt, free_names, read_prompts, slug


def test_a_slug_is_a_short_safe_name():
    names = {"A red circle!": "a-red-circle", "../../etc/passwd": "etc-passwd", "": "no-prompt"}
    names |= {"Ein Müller, 3 Kühe": "ein-müller-3-kühe", "...": "no-prompt"}
    names |= {"word " * 40: "-".join(["word"] * 12)}
    assert {text: slug(text) for text in names} == names


def test_a_folder_gives_its_files_names_and_a_file_its_lines(tmp_path):
    (tmp_path / "sunset.txt").write_text("\ufeffa sunset\nover the sea\n", encoding="utf-8")
    (tmp_path / "dawn.TXT").write_text("a dawn")
    (tmp_path / "notes.md").write_text("no prompt")
    sunset = Prompt("a sunset over the sea", "sunset")
    assert read_prompts(tmp_path) == [Prompt("a dawn", "dawn"), sunset]
    (tmp_path / "all.list").write_text("a cat\n\na dog \n")
    assert read_prompts(tmp_path / "all.list") == [
        Prompt("a cat", "a-cat"),
        Prompt("a dog", "a-dog"),
    ]


def test_paths_without_prompts_are_explained(tmp_path):
    (tmp_path / "nothing").mkdir()
    for name, text in (("empty", "\n"), ("full.txt", "a cat"), ("blank.txt", "\n")):
        (tmp_path / name).write_text(text)
    refused("no such folder or file", read_prompts, tmp_path / "missing")
    refused(r"no prompts; looked for \.txt files", read_prompts, tmp_path / "nothing")
    refused("looked for a prompt a line", read_prompts, tmp_path / "empty")
    refused(r"blank\.txt holds no text", read_prompts, tmp_path)


def test_names_are_free_and_numbered(tmp_path):
    for file in ("out/sunset.png", "out-records/sunset-2.json", "out/dawn.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    for folder, stems, names in (
        ("new", "sunset sunset dawn sunset", "sunset sunset-1 dawn sunset-2"),
        ("out", "sunset sunset dawn sunset", "sunset-1 sunset-3 dawn sunset-4"),
        ("new", "one one one-1 one-1", "one one-2 one-1 one-1-1"),  # each stem is left to its own
        ("new", "samples", "samples_"),
    ):
        assert free_names(tmp_path / folder, stems.split()) == names.split()
