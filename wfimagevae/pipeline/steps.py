"""Steps with everything that they inherit: shared values < defaults < data set < step."""

from dataclasses import dataclass
from typing import Any

from wfimagevae.pipeline.components import (
    DECODER,
    DISCRIMINATOR,
    ENCODER,
    FLOW,
    TEXT_ENCODER,
    components,
)
from wfimagevae.pipeline.document import Document, Place
from wfimagevae.pipeline.schema import DatasetSection, PipelineFile, Settings, Step

SHARED: Place = ("training",)
DEFAULTS: Place = ("training", "pipeline", "defaults")
_BYTES = "bytes"


@dataclass(frozen=True)
class Source:
    """Where a step's data comes from.

    Attributes:
        place: Of its section in the file.
        name: As people know it.
        paths: What is trained on; none for data that is drawn.
        held_out: What is validated on; none without validation.
        section: All that the file says of it.
        is_webdataset: The paths are tar shards.
    """

    place: Place
    name: str
    paths: list[str]
    held_out: list[str]
    section: Any
    is_webdataset: bool


@dataclass(frozen=True)
class MergedStep:
    """A step as it will be trained.

    Attributes:
        index: Among the steps, from 0.
        settings: With all that it inherits.
        own: What the file says at the step itself.
        source: Its data; None where there is none.
        task: ``vae``, ``flow``, or nothing.
        trained: Components that learn.
        frozen: Components that the file freezes.
    """

    index: int
    settings: Step
    own: dict
    source: Source | None
    task: str | None
    trained: frozenset[str]
    frozen: frozenset[str]

    @property
    def name(self) -> str:
        """As the file says."""
        return self.settings.name

    @property
    def place(self) -> Place:
        """Of the step in the file."""
        return ("training", "pipeline", "steps", self.index)

    def origin(self, document: Document, *key: str) -> Place:
        """Where a setting's value comes from."""
        data_set = (self.source.place,) if self.source else ()
        for section in (self.place, *data_set, DEFAULTS, SHARED):
            if (*section, *key) in document.lines:
                return (*section, *key)
        return self.place


def merge_steps(content: PipelineFile) -> list[MergedStep]:
    """All steps of a file, each with what it inherits."""
    training, pipeline = content.training, content.training.pipeline
    shared = {key: value for key, value in _given(training).items() if key in Settings.model_fields}
    merged = []
    for index, step in enumerate(pipeline.steps):
        own = _given(step)
        above = _deep_merge(shared, _given(pipeline.defaults))
        source = _source(content, own.get("dataset", above.get("dataset")))
        if source and isinstance(source.section, DatasetSection):
            kept = {"batch_size", "workers", "options"}
            from_data = {k: v for k, v in _given(source.section).items() if k in kept}
            above = _deep_merge(above, from_data)
        settings = Step.model_validate(_deep_merge(above, own))
        frozen = components(settings.freeze) - components(settings.unfreeze)
        task = _task(settings)
        trained = _trained(settings, task, frozen, content.model.text_encoder)
        merged.append(MergedStep(index, settings, own, source, task, trained, frozenset(frozen)))
    return merged


def declared(settings: Settings) -> set[str]:
    """Components that a step's flags say it trains."""
    names = set()
    if settings.train_vae:
        chosen = {"encoder": {ENCODER}, "decoder": {DECODER}}
        names |= chosen.get(settings.train_vae, {ENCODER, DECODER})
    if settings.gan_training:
        names.add(DISCRIMINATOR)
    if settings.train_diff or settings.train_diff_full:
        names.add(FLOW)
    return names


def is_gan_only(settings: Settings) -> bool:
    """Whether the VAE learns from the discriminator and the KL term alone."""
    return bool(settings.gan_training and not settings.train_vae)


def _trained(settings: Step, task: str | None, frozen: set[str], text: str | None) -> frozenset:
    names = declared(settings)
    if is_gan_only(settings):
        names |= {ENCODER, DECODER}
    if task == "flow" and text == _BYTES:
        names.add(TEXT_ENCODER)
    options = settings.options
    hidden = {"freeze_discriminator": DISCRIMINATOR, "freeze_flow": FLOW}  # flags without a key
    return frozenset(names - frozen - {hidden[flag] for flag in hidden if options.get(flag)})


def _task(settings: Settings) -> str | None:
    if settings.train_vae or settings.gan_training:
        return "vae"
    return "flow" if settings.train_diff or settings.train_diff_full else None


def _source(content: PipelineFile, name: str | None) -> Source | None:
    pipeline, data = content.training.pipeline, content.data
    name = name or pipeline.default_dataset
    if name is not None:
        section = pipeline.datasets.get(name)
        if section is None:
            return None
        is_web = section.type == "webdataset"
        paths = section.webdataset_url if is_web else section.image_folder
        place = ("training", "pipeline", "datasets", name)
        held_out = _listed(section.eval_image_folder)
        return Source(place, name, _listed(paths), held_out, section, is_web)
    paths = data.webdataset_url if data.use_webdataset else data.data_path
    if not paths:
        return None
    held_out = _listed(data.eval_data_path)
    return Source(("data",), "data", _listed(paths), held_out, data, data.use_webdataset)


def _listed(paths: str | list[str] | None) -> list[str]:
    return [] if not paths else [paths] if isinstance(paths, str) else paths


def _given(section: Any) -> dict:
    """What the file says of a section, without defaults."""
    return section.model_dump(exclude_unset=True)


def _deep_merge(under: dict, over: dict) -> dict:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if both else value
    return merged
