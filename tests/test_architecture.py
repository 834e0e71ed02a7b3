"""The layers, sizes and habits that the design asks for, read from the source itself."""

import ast
import functools
import importlib
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import packages_distributions
from pathlib import Path
from unittest.mock import Mock

import pytest
import setuptools
from packaging.requirements import Requirement

import wfimagevae
from wfimagevae.options import Options

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wfimagevae"

# Imports point to earlier lines only; packages of one line never import each other.
ORDER = [
    "early",
    "files options torchrun sharded_files",
    "yaml_files",
    "command_line",
    "model diffusion dataset engine",
    "objective pictures",
    "generate",
    "eval export",
    "task",
    "pipeline",
]
LAYERS = {name: number for number, names in enumerate(ORDER) for name in names.split()}
MODULE_NAME = re.compile(r"wfimagevae(\.\w+)+")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_MODULES = 16  # of a folder
ON_DEMAND = {"matplotlib", "skimage", "lpips", "wandb", "trackio", "tensorboard", "pynvml"}
ON_DEMAND |= {"torch_fidelity", "tokenizers", "transformers", "gradio"}
ON_DEMAND |= {"open_clip"}
FOLDERS = ("wfimagevae", "scripts", "tests", "examples", "docs", "legacy", ".ci", ".github")
TEXT_SUFFIXES = {".py", ".sh", ".md", ".yaml", ".yml", ".json", ".toml", ".txt", ""}


def project_files():
    """Every text file of the project, without virtual environments, caches and results."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(p for p in files if p.suffix in TEXT_SUFFIXES and "__pycache__" not in p.parts)


PYTHON_FILES = [path for path in project_files() if path.suffix == ".py"]
SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")}
SHIPPED = [p for p in PYTHON_FILES if p.relative_to(ROOT).parts[0] not in ("tests", "legacy")]


def relative(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree):
    """Dotted names of all imports, inside functions too, and of modules named in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "wfimagevae":
                yield from (f"wfimagevae.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Constant) and MODULE_NAME.fullmatch(str(node.value)):
            yield node.value


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_imports_point_to_lower_layers_only(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] != "wfimagevae" or len(parts) == 2:
        return
    own = parts[1]
    assert own in LAYERS, f"{own} has no layer; add it to LAYERS and to the design"
    for name in imported_modules(parse(path)):
        if not name.startswith("wfimagevae"):
            continue
        other = name.split(".")[1]
        allowed = other == own or LAYERS.get(other, 99) < LAYERS[own]
        assert allowed, f"{relative(path)} ({own}) imports {name}"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_no_file_or_function_outgrows_its_ceiling(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_contributors_are_told_these_ceilings():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert f"At most {MAX_FILE_LINES} lines a file, {MAX_FUNCTION_LINES} a function" in text


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_nobody_imports_the_archive_the_tests_or_another_script(path):
    roots = {name.split(".")[0] for name in imported_modules(parse(path))}
    if path.name == "quickstart_flow.py":  # goes on where the first half ends
        roots -= {"quickstart"}
    assert not roots & {"legacy", "tests", "scripts", *SCRIPTS}


def test_the_archived_models_stand_alone_and_are_short():
    files = sorted((ROOT / "legacy" / "wfvae_video").glob("*.py"))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 900
    for path in files:
        roots = {name.split(".")[0] for name in imported_modules(parse(path))}
        assert not roots & {"wfimagevae", "tests", "scripts"}, relative(path)
        assert ast.get_docstring(parse(path)), f"{relative(path)} does not say what it is"


@pytest.mark.parametrize("path", SHIPPED, ids=relative)
def test_heavy_and_optional_packages_are_imported_where_they_are_used(path):
    for node in parse(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            roots = {name.split(".")[0] for name in imported_modules(node)}
            assert not roots & ON_DEMAND, f"line {node.lineno}: import it in a function"


def test_flag_modules_import_no_torch():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem == "options" or path.stem.endswith("_options")
    )
    assert "wfimagevae.options" in modules
    code = "import importlib, sys\n"
    code += f"for name in {modules!r}:\n    importlib.import_module(name)\n"
    code += "print(*{'torch', 'diffusers', 'torchvision', 'numpy'} & set(sys.modules))"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output.split() == []


def test_no_path_of_one_machine_is_in_the_repository():
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|work|farm|storage)/\w")
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_file_has_a_name_that_says_nothing():
    vague = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert [relative(path) for path in PYTHON_FILES if path.name in vague] == []


@pytest.fixture(scope="module")
def setup_arguments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", setup := Mock())
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def package_name(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_setup_takes_its_requirements_from_requirements_txt(setup_arguments):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert setup_arguments["install_requires"] == lines
    assert "torch>=2.8" in lines
    base = {package_name(line) for line in lines}
    optional = {package_name(r) for rs in setup_arguments["extras_require"].values() for r in rs}
    assert not base & optional


def test_pinned_versions_are_public_ones_that_the_requirements_allow(setup_arguments):
    base, extras = setup_arguments["install_requires"], setup_arguments["extras_require"]
    every = sum(extras.values(), base)
    allowed = {package_name(requirement): Requirement(requirement) for requirement in every}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {package_name(requirement) for requirement in [*base, *extras["dev"]]} <= pins.keys()
    for name, version in pins.items():
        assert "+" not in version and allowed[name].specifier.contains(version), name


def test_every_imported_package_is_declared(setup_arguments):
    declared = sum(setup_arguments["extras_require"].values(), setup_arguments["install_requires"])
    names = {package_name(requirement) for requirement in declared}
    sources = packages_distributions() | {"pydantic_core": ["pydantic"]}
    own = {"wfimagevae", "setuptools", *SCRIPTS} | {path.stem for path in ROOT.glob("*.py")}
    for path in SHIPPED:
        roots = {name.split(".")[0] for name in imported_modules(parse(path))}
        for root in roots - own - set(sys.stdlib_module_names):
            name = sources.get(root, [root])[0].lower().replace("_", "-")
            assert name in names, f"{relative(path)} imports {root}, which no requirement names"


def test_a_source_distribution_builds_without_the_repository(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("wfimagevae", "scripts"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    run = functools.partial(subprocess.run, check=True, capture_output=True)
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path], cwd=source)
    (archive,) = tmp_path.glob("wfimagevae-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run([sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "b"], cwd=unpacked)
    built = tmp_path / "b" / "lib"
    modules = {path.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    modules |= {Path("wfimagevae", "commands", f"{name}.py") for name in SCRIPTS}
    modules |= {Path("train_ddp.py"), Path("train_image_ddp.py")}
    assert modules == {path.relative_to(built) for path in built.rglob("*.py")}
    # What is installed starts without the repository, from any folder.
    words = [sys.executable, "-m", "wfimagevae", "generate", "--help"]
    variables = os.environ | {"PYTHONPATH": str(built)}
    helped = run(words, cwd=tmp_path, env=variables).stdout.decode()
    assert "usage: wfimagevae generate" in helped and "--guidance_scale" in helped


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_options_are_objects_not_dictionaries(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.arg) and node.arg == "options" and node.annotation:
            kind = ast.unparse(node.annotation)
            assert not kind.startswith(("dict", "Mapping")), f"line {node.lineno}: {kind}"
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("options"):
            assert not isinstance(node.slice, ast.Constant), f"line {node.lineno}: by name"


def option_classes():
    for module in pkgutil.walk_packages(wfimagevae.__path__, "wfimagevae."):
        if module.name.endswith("options"):
            importlib.import_module(module.name)
    waiting, classes = [Options], []
    while waiting:
        classes += (below := waiting.pop().__subclasses__())
        waiting += below
    return [cls for cls in classes if cls.__module__.startswith("wfimagevae.")]


def test_an_option_has_one_home():
    """Commands may differ in what a name means; the same words never stand in two classes.

    What is declared by a shared name, or by a class that changes what it inherits, is one home.
    """
    homes = {}
    for path in PACKAGE.rglob("*options.py"):
        for group in (node for node in parse(path).body if isinstance(node, ast.ClassDef)):
            for field in (node for node in group.body if isinstance(node, ast.AnnAssign)):
                if isinstance(field.value, ast.Call) and ast.unparse(field.value.func) == "option":
                    words = field.target.id, ast.unparse(field.annotation), ast.unparse(field.value)
                    homes.setdefault(words, []).append(f"{relative(path)}: {group.name}")
    assert [(words[0], places) for words, places in homes.items() if len(places) > 1] == []


def test_no_command_inherits_an_option_from_two_sides():
    for command in option_classes():
        homes = {}
        for group in reversed(command.__mro__):
            for name in vars(group).get("__annotations__", {}).keys() & command.model_fields.keys():
                other = homes.setdefault(name, group)
                assert issubclass(group, other), f"{command.__name__}: {name}: {other}, {group}"


def test_no_folder_of_the_package_is_crowded():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= MAX_MODULES, f"{relative(folder)} has {len(modules)} modules"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_docstrings_are_sentences(path):
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            continue
        text = ast.get_docstring(node)
        is_title = isinstance(node, ast.ClassDef) and re.search("(Options|Config)$", node.name)
        if text is None or is_title:
            continue
        first = " ".join(text.split("\n\n")[0].split())
        assert re.match(r"[A-Z`]", first) and first.endswith((".", ":")), first
        is_fragment = len(first.split()) < 3 or re.match("(Of|And|But) ", first)
        assert not is_fragment, f"{first!r} is a fragment"


def test_the_training_story_is_four_short_files():
    story = ["train_ddp.py", "wfimagevae/engine/loop.py", "wfimagevae/engine/player.py"]
    story.append("wfimagevae/objective/flow_matching.py")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "four short files, about 500 lines" in readme and all(name in readme for name in story)
    lengths = [len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in story]
    assert sum(lengths) == pytest.approx(500, abs=50)
