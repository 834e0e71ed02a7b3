"""Files and folders that a pipeline names: are they there? No torch here."""

import re
from pathlib import Path

from wfimagevae.files import is_hub_name
from wfimagevae.pipeline.document import Document, Place
from wfimagevae.pipeline.schema import PipelineFile

_PATTERN = re.compile(r"[*?\[{]")
_SCHEME = re.compile(r"(\w+://|pipe:)")
_BYTES, _TEXT_FAMILIES = "bytes", ("clip", "t5", "bert")
_FILE_FLAGS = {"lpips_weights", "better_captions"}
_CAPTION_KINDS = ("none", "sidecar", "manifest")


def check_paths(document: Document, content: PipelineFile) -> None:
    """Reports every file or folder that the file names and that does not exist."""
    for name in ("vae", "flow"):
        section = getattr(content.model, name)
        if isinstance(section.config, str):
            _check(document, ("model", name, "config"), section.config)
        if section.pretrained and not is_hub_name(section.pretrained):
            _check(document, ("model", name, "pretrained"), section.pretrained)
    _check_text_encoder(document, content.model.text_encoder)
    data = content.data
    for key in ("data_path", "eval_data_path", "webdataset_url"):
        _check_sources(document, ("data", key), getattr(data, key))
    _check_captions(document, ("data", "captions_file"), data.captions_file)
    for name, section in content.training.pipeline.datasets.items():
        place = ("training", "pipeline", "datasets", name)
        for key in ("image_folder", "eval_image_folder", "webdataset_url"):
            _check_sources(document, (*place, key), getattr(section, key))
        _check_captions(document, (*place, "captions_file"), section.captions_file)
    _check_pictures(document, content.output.test_image_address)
    _check_options(document, content)


def _check_pictures(document: Document, paths: str | list[str]) -> None:
    place = ("output", "test_image_address")
    for index, path in enumerate([paths] if isinstance(paths, str) else paths):
        where = place if isinstance(paths, str) else (*place, index)
        _check(document, where, path)
        if Path(path).is_dir():
            document.report(where, f"test_image_address {path} is a folder; name images")


def _check_options(document: Document, content: PipelineFile) -> None:
    """Files that flags name."""
    training, pipeline = content.training, content.training.pipeline
    above = ("training", "pipeline")
    sections: list[tuple[Place, dict]] = [
        (("training",), training.options),
        ((*above, "defaults"), pipeline.defaults.options),
        *(((*above, "datasets", n), one.options) for n, one in pipeline.datasets.items()),
        *(((*above, "steps", i), one.options) for i, one in enumerate(pipeline.steps)),
    ]
    for place, options in sections:
        for name in _FILE_FLAGS & options.keys():
            if isinstance(options[name], str):
                _check(document, (*place, "options", name), options[name])


def _check_text_encoder(document: Document, spec: str | None) -> None:
    kind, _, path = (spec or _BYTES).partition(":")
    place = ("model", "text_encoder")
    if spec == _BYTES or spec is None:
        return
    if kind not in _TEXT_FAMILIES or not path:
        families = ", ".join(f"{family}:PATH_OR_NAME" for family in _TEXT_FAMILIES)
        document.report(place, f"text_encoder {spec!r}: write {_BYTES}, or one of {families}")
    elif not is_hub_name(path):
        _check(document, place, path)


def _check_sources(document: Document, place: Place, paths: str | list[str] | None) -> None:
    several = isinstance(paths, list)
    for index, path in enumerate(paths if several else [paths] if paths else []):
        if not (_SCHEME.match(path) or _PATTERN.search(path)):
            _check(document, (*place, index) if several else place, path)


def _check_captions(document: Document, place: Place, path: str | None) -> None:
    if path and path not in _CAPTION_KINDS:
        _check(document, place, path)


def _check(document: Document, place: Place, path: str) -> None:
    if not Path(path).expanduser().exists():
        key = next(part for part in reversed(place) if isinstance(part, str))
        document.report(place, f"{key} {path} does not exist")
