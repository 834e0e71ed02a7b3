"""Data of the steps: is there some, and does its kind read what the file says? No torch here."""

from wfimagevae.pipeline.document import Document, Place, nearest
from wfimagevae.pipeline.schema import DataSection, DatasetSection, PipelineFile
from wfimagevae.pipeline.steps import MergedStep

_OF_SHARDS = (
    *("webdataset_url", "webdataset_image_key", "webdataset_label_key"),
    "webdataset_caption_key",
)
_OF_FOLDERS = ("captions_file", "data_path", "image_folder")
_OF_DATA_ALONE = ("data_path", "eval_data_path", "data_weights", "captions_file", "webdataset_url")


def check_sections(document: Document, content: PipelineFile, steps: list[MergedStep]) -> None:
    """Reports keys of data that no step, or its kind of data, does not read."""
    data, pipeline = content.data, content.training.pipeline
    if all(step.settings.dataset or pipeline.default_dataset for step in steps):
        for key in _OF_DATA_ALONE:
            if getattr(data, key):
                document.report(
                    ("data", key),
                    f"{key} has no effect: every step takes its data from "
                    "training.pipeline.datasets; make it one of them, or leave it out",
                )
    else:
        _check_kind(document, ("data",), data, data.use_webdataset, "use_webdataset: true")
    for name, section in pipeline.datasets.items():
        place = ("training", "pipeline", "datasets", name)
        _check_kind(document, place, section, section.type == "webdataset", "type: webdataset")
    if content.model.text_encoder:
        return
    if content.output.sample_captions:
        document.report(
            ("output", "sample_captions"), "sample_captions has no effect without text_encoder"
        )
    places: list[tuple[Place, DataSection | DatasetSection]] = [(("data",), data)]
    places += [
        (("training", "pipeline", "datasets", name), section)
        for name, section in pipeline.datasets.items()
    ]
    for place, section in places:
        if section.fixed_prompt_prefix:
            document.report(
                (*place, "fixed_prompt_prefix"),
                "fixed_prompt_prefix has no effect without model.text_encoder",
            )


def _check_kind(
    document: Document,
    place: Place,
    section: DataSection | DatasetSection,
    is_shards: bool,
    switch: str,
) -> None:
    for key in _OF_FOLDERS if is_shards else _OF_SHARDS:
        if getattr(section, key, None):
            advice = "leave it out" if is_shards else f"write {switch}"
            document.report(
                (*place, key),
                f"{key} has no effect {'with' if is_shards else 'without'} {switch}: {advice}",
            )


def check_data(document: Document, content: PipelineFile, step: MergedStep) -> None:
    """Reports a step's data that is missing, or that cannot be used as it says."""
    name = step.settings.dataset
    if name is not None and name not in content.training.pipeline.datasets:
        document.report(step.origin(document, "dataset"), unknown_dataset(name, content))
        return
    drawn = step.task == "flow" and "dataset" in step.settings.options
    default = content.training.pipeline.default_dataset
    source = step.source
    if source is None and not drawn and default is None:
        document.report(
            step.place,
            f"step {step.name!r} has no data: give data.data_path, or datasets and dataset: NAME",
        )
    if source is not None and not source.paths:
        key = "webdataset_url" if source.is_webdataset else "image_folder"
        document.report(source.place, f"dataset {source.name!r} needs {key}")
    if step.task == "flow" and step.settings.cache_latents:
        several = source and max(len(source.paths), len(source.held_out)) > 1
        if source is None or several or source.is_webdataset:
            document.report(
                step.origin(document, "cache_latents"),
                f"step {step.name!r}: cache_latents takes one folder or manifest of images (and "
                "one held out); without it latents are encoded while training",
            )


def unknown_dataset(name: str, content: PipelineFile) -> str:
    """What is wrong with a name of data that the file does not have."""
    known = content.training.pipeline.datasets
    if not known:
        return f"unknown dataset {name!r}: training.pipeline.datasets names none"
    return f"unknown dataset {name!r}{nearest(name, known)}"
