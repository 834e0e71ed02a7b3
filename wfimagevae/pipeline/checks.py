"""What a pipeline file's steps cannot mean, whatever their keys and types. No torch here."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wfimagevae.dataset.options import CAPTION_KINDS, StreamOptions
from wfimagevae.dataset.shards.specs import COMMAND_IN_FILE
from wfimagevae.files import DIFFUSERS, check_scheme, is_hub_name
from wfimagevae.options import nearest
from wfimagevae.pipeline.flags import METRICS, OPTIMIZED, idleness, step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS, DataSection, StepSection
from wfimagevae.pipeline.instead import FLAGS, INSTEAD, OF_ONE_STEP, flag_of, in_words_of_file
from wfimagevae.pipeline.steps import (
    DEFAULTS,
    MODES,
    SHARED,
    Pipeline,
    Place,
    Problems,
    Step,
    read_pipeline,
)
from wfimagevae.yaml_files import stands_in_file

# Keys that name files, and what else they may be.
_NO_FILE = dict.fromkeys(("config", "lpips_weights", "better_captions", "test_image_address"))
_NO_FILE |= dict.fromkeys(
    ("data_path", "eval_data_path", "image_folder", "eval_image_folder", "webdataset_url"),
    re.compile(r"(\w+://|pipe:)|.*[*?\[{]").match,  # shards
)
_NO_FILE["captions_file"] = ("", *CAPTION_KINDS).__contains__
_NO_FILE["pretrained"] = lambda path: path.startswith(DIFFUSERS) or is_hub_name(path)
_OF_SHARDS = [name for name in DataSection.model_fields if name.startswith("webdataset_")]
_OF_FOLDERS = ("captions_file", "data_path", "image_folder")
_OF_DATA_ALONE = ("data_path", "eval_data_path", "data_weights", "captions_file", "webdataset_url")


def load_pipeline(path: str | Path, flags: Mapping[str, Any] | None = None) -> Pipeline:
    """Reads and checks a pipeline file, without importing torch; flags win over it.

    A PipelineError has everything that is wrong, by line.
    """
    pipeline = read_pipeline(path, flags)
    document = pipeline.document
    for check in (_check_names, _check_paths, _check_data, _check_unread_keys, _check_options):
        for place, text in check(pipeline):
            document.report(place, text)
    for step in pipeline.steps:
        checks = _check_modes, _check_sources, _check_start, _check_values, _check_transition
        for check in checks if step.task else checks[:2]:
            for key, text in check(pipeline, step):
                document.report(step.origin(document, *key) if key else step.place, text)
    document.check()
    return pipeline


def _check_names(pipeline: Pipeline) -> Problems:
    """Steps have names of their own; the default data set is one."""
    first: dict[str, Step] = {}
    for step in pipeline.steps:
        other = first.setdefault(step.name.lower(), step)
        if other is not step:
            line = pipeline.document.line((*other.place, "name"))
            text = f"step name {step.name!r} is taken by the step of line {line}"
            yield (*step.place, "name"), f"{text} (files are named after steps)"
    section = pipeline.content.training.pipeline
    if section.default_dataset not in (None, *section.datasets):
        text = _unknown_dataset(section.default_dataset, section.datasets)
        yield ("training", "pipeline", "default_dataset"), text


def _unknown_dataset(name: str, known: Mapping) -> str:
    hint = nearest(name, known) if known else ": training.pipeline.datasets names none"
    return f"unknown dataset {name!r}{hint}"


def _check_paths(pipeline: Pipeline) -> Problems:
    """Files that the file names are there, and files at all."""
    read = _read_captions(pipeline)
    for place, path in _texts(pipeline.content.model_dump(exclude_unset=True), ()):
        key = next(part for part in reversed(place) if isinstance(part, str))
        if place == ("model", "text_encoder") and path not in ("", "bytes"):
            kind, _, name = path.partition(":")
            if kind not in ("clip", "t5", "bert") or not name:
                families = "clip:PATH_OR_NAME, t5:PATH_OR_NAME, bert:PATH_OR_NAME"
                yield place, f"text_encoder {path!r}: write bytes, or one of {families}"
            elif not (is_hub_name(name) or os.path.exists(os.path.expanduser(name))):
                yield place, f"text_encoder {name} does not exist"
        if key == "output_path" and "://" in path:
            yield place, f"{key} {path} is a URL: write a folder of this machine"
        if key not in _NO_FILE or (key == "captions_file" and place[:-1] not in read):
            continue
        if _NO_FILE[key] and _NO_FILE[key](path):
            try:
                check_scheme(path)
            except ValueError as error:
                yield place, f"{key} {error}"
            if "pipe:" in path and stands_in_file(path) and not pipeline.flags.get("allow_pipe"):
                yield place, f"{key} {path}: {COMMAND_IN_FILE}"
        elif "://" in path:
            yield place, f"{key} {path} is a URL: copy it to this machine and write its path"
        elif not os.path.exists(os.path.expanduser(path)):
            yield place, f"{key} {path} does not exist"
        elif key == "test_image_address" and Path(path).is_dir():
            yield place, f"{key} {path} is a folder; name images"


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every text below a place of the file."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*place, key))


def _read_captions(pipeline: Pipeline) -> set[Place]:
    """The sections of data whose captions a flow may learn."""
    return {step.source.place for step in pipeline.steps if step.task == "flow" and step.source}


def _data_sets(pipeline: Pipeline) -> list[tuple[Place, Any]]:
    above = ("training", "pipeline", "datasets")
    return [((*above, n), one) for n, one in pipeline.content.training.pipeline.datasets.items()]


def _check_data(pipeline: Pipeline) -> Problems:
    """Sections of data have no keys that no step, or their kind of data, does not read."""
    content = pipeline.content
    sections = [(("data",), content.data), *_data_sets(pipeline)]
    read, default = sections, content.training.pipeline.default_dataset
    if all(step.settings.dataset or default for step in pipeline.steps):
        for key in _OF_DATA_ALONE:
            if getattr(content.data, key):
                text = f"{key} has no effect: every step takes its data from "
                text += "training.pipeline.datasets; make it one of them, or leave it out"
                yield ("data", key), text
        read = sections[1:]
    for place, section in read:
        advice = f"without {section.switch}: leave out, or write that"
        if section.is_webdataset:
            advice = f"with {section.switch}: leave out"
        keys = _OF_FOLDERS if section.is_webdataset else _OF_SHARDS
        if idle := [key for key in keys if getattr(section, key, None)]:
            yield (*place, idle[0]), f"{', '.join(idle)}: no effect {advice}"
    if content.model.text_encoder:
        return
    # One edit mends all that is said for a text that no flow learns.
    read, idle = _read_captions(pipeline), []
    for place, section in sections:
        idle += [(*place, "fixed_prompt_prefix")] if section.fixed_prompt_prefix else []
        if place in read and section.captions_file not in (None, "", "none"):
            idle.append((*place, "captions_file"))
    for step in pipeline.steps:
        has_classes = {"labels", "dataset"} & step.settings.options.keys()
        if step.task == "flow" and step.settings.cfg_dropout_prob and not has_classes:
            idle.append(step.origin(pipeline.document, "cfg_dropout_prob"))
    idle += [("output", "sample_captions")] if content.output.sample_captions else []
    if idle:
        names = ", ".join(dict.fromkeys(str(place[-1]) for place in idle))
        advice = "give model.text_encoder, such as bytes, or leave out"
        yield idle[0], f"{names}: no effect without a flow step that learns text; {advice}"


def _check_unread_keys(pipeline: Pipeline) -> Problems:
    """What a step says is read by trainings of its kind; what stands above, by a step's."""
    training, steps = pipeline.content.training, pipeline.steps
    sections = [(SHARED, training, steps), (DEFAULTS, training.pipeline.defaults, steps)]
    sections += [(s.place, training.pipeline.steps[s.index], [s]) for s in steps]
    for place, section, readers in sections:
        for key in section.model_fields_set:
            reasons = [idleness(step, key) for step in readers]
            if getattr(section, key) not in (None, False) and all(reasons):
                why = " and ".join(dict.fromkeys(reasons))
                is_shared = readers is steps
                text = f"no step reads {key}, which {why}" if is_shared else f"{key} {why}"
                yield (*place, key), f"{text}; leave it out"
    for step in steps:
        for kind in ("optimizers", "schedulers") if step.task else ():
            for name in step.own.get("optimization", {}).get(kind, {}):
                if name not in OPTIMIZED[step.task]:
                    text = f"{name} is not trained in a {step.task} step"
                    yield (*step.place, "optimization", kind, name), text


def _check_options(pipeline: Pipeline) -> Problems:
    """Options are flags of their training, and ones that no key and no single step decides."""
    training = pipeline.content.training
    above = [(SHARED, training), (DEFAULTS, training.pipeline.defaults), *_data_sets(pipeline)]
    steps = [(s.place, training.pipeline.steps[s.index], s) for s in pipeline.steps if s.task]
    for place, section, step in [(*each, None) for each in above] + steps:
        known = OPTIONS[step.task].by_flag() if step else FLAGS
        for written, value in section.options.items():
            where = (*place, "options", written)
            name = flag_of(written) if isinstance(value, bool) else written
            instead = INSTEAD.get(name) or (_of_step(step) if step else OF_ONE_STEP).get(name)
            if name not in known:
                kind = step.task if step else " or ".join(OPTIONS)
                hint = nearest(name, known).split("; known")[0]
                yield where, f"a {kind} training has no flag {name}{hint}"
            elif instead:
                yield where, f"{written} in options: a key of the file decides it; write {instead}"


def _of_step(step: Step) -> dict[str, str]:
    """What to write instead of options that do not go with the keys of a step."""
    if not step.settings.gan_training:
        return dict.fromkeys(("disc_weight", "adaptive_weight"), "gan_training: true with it")
    if step.is_gan_only or step.settings.lambda_adv is not None:
        constant = "lambda_adv, which is a constant weight, alone"
        others = {"rec_weight": "train_vae: true to compare images"} if step.is_gan_only else {}
        return dict.fromkeys(("disc_weight", "adaptive_weight"), constant) | others
    return {}


def _check_modes(pipeline: Pipeline, step: Step) -> Problems:
    """A step trains one thing, for some time, and not what it freezes."""
    settings, name, document = step.settings, f"step {step.name!r}", pipeline.document

    def is_unclear(*keys: str) -> bool:
        """Whether one is written with a value that was refused, and what it says is unknown."""
        wrong = {line for line, _ in document.problems}
        return any(document.lines.get(step.origin(document, key)) in wrong for key in keys)

    flow = settings.train_diff or settings.train_diff_full
    if flow and (settings.train_vae or settings.gan_training):
        text = "trains the VAE and the flow at once: the flow would chase moving latents"
        yield (), f"{name} {text}; write two steps, the VAE's first"
    if settings.train_diff and settings.train_diff_full:
        text = "train_diff and train_diff_full are the same here: leave one out"
        yield ("train_diff_full",), text
    if step.task is None and not is_unclear(*MODES):
        yield (), f"{name} trains nothing: set train_vae, gan_training or train_diff"
    if settings.use_fp16 is not None and settings.precision is not None:
        yield ("use_fp16",), "use_fp16 and precision say the same: leave use_fp16 out"
    if settings.steps is not None and "n_epochs" in step.own:
        yield ("steps",), "give n_epochs or steps, not both"
    if settings.steps is not None and settings.max_steps is not None:
        yield ("steps",), "max_steps limits an epoch; with steps it has no effect"
    has_end = settings.n_epochs or settings.steps or settings.transition_on.mode != "epoch"
    if not has_end and not is_unclear("n_epochs", "steps", "transition_on"):
        yield (), f"{name} has no length: give n_epochs or steps"
    if both := set(step.own.get("freeze", [])) & set(step.own.get("unfreeze", [])):
        yield ("unfreeze",), f"{', '.join(sorted(both))}: frozen and unfrozen in one step"
    if both := step.declared & step.frozen:
        advice = dict.fromkeys(text for mode, text in MODES.items() if getattr(settings, mode))
        text = f"{name} freezes and trains {', '.join(sorted(both))}: leave it out of freeze, or "
        yield ("freeze",), text + "; ".join(advice)
    elif step.task is not None and not step.trained - {"discriminator"}:
        yield (), f"{name} trains nothing but what it freezes"


def _check_sources(pipeline: Pipeline, step: Step) -> Problems:
    """A step's data is there, and such that it can be used as the step says."""
    section, content = pipeline.content.training.pipeline, pipeline.content
    name, source, settings = step.settings.dataset, step.source, step.settings
    if name is not None and name not in section.datasets:
        yield ("dataset",), _unknown_dataset(name, section.datasets)
        return
    is_drawn = step.task == "flow" and "dataset" in settings.options
    if source is None and not is_drawn and section.default_dataset is None:
        text = "has no data: give data.data_path, or datasets and dataset: NAME"
        yield (), f"step {step.name!r} {text}"
    if source is not None and not source.section.paths:
        key = "webdataset_url" if source.section.is_webdataset else "image_folder"
        pipeline.document.report(source.place, f"dataset {source.place[-1]!r} needs {key}")
    if step.task != "flow":
        return
    flags = step_flags(pipeline, step) if settings.cache_latents else {}
    for name in (*StreamOptions.by_flag(), "train_crop"):
        default = OPTIONS["flow"].by_flag()[name].default
        is_idle = name.startswith("wds_") or name == "allow_pipe"
        if not is_idle and flags.get(name, default) not in (None, default):
            text = "cached latents, which are the middle of every image at one size, cannot honour "
            text += f"{name}: leave it out, or cache_latents"
            yield ("options", name), f"step {step.name!r}: {text}"
    is_single = source and max(len(source.section.paths), len(source.section.held_out)) <= 1
    if settings.cache_latents and not (is_single and not source.section.is_webdataset):
        text = "cache_latents takes one folder or manifest of images (and one held out); without "
        yield ("cache_latents",), f"step {step.name!r}: {text}it latents are encoded while training"
    vae = content.model.vae
    if vae.pretrained is not None or pipeline.before(step, "vae"):
        return
    if vae.config is not None:
        text = f"step {step.name!r} would learn latents of a VAE that nothing trained: give "
        text += "model.vae.pretrained, or put a step with train_vae before it"
        pipeline.document.report(("model", "vae"), text)
    if settings.cache_latents:
        text = "there is no VAE to make latents with: see model.vae.pretrained"
        yield ("cache_latents",), text


def _check_start(pipeline: Pipeline, step: Step) -> Problems:
    """A step leaves no network as it was made, at random."""
    content, settings = pipeline.content, step.settings
    source = content.model.vae.pretrained or ""
    if step.task == "vae" and source.startswith(DIFFUSERS):
        text = f"cannot train {source}: a VAE of diffusers serves steps of a flow alone"
        yield ("train_vae",), f"step {step.name!r} {text}"
    if step.task == "vae":
        networks = {"encoder", "decoder"} | ({"discriminator"} if settings.gan_training else set())
    else:
        networks = {"flow"} | ({"text_encoder"} if content.model.text_encoder == "bytes" else set())
    learned = {name for other in pipeline.steps[: step.index] for name in other.trained}
    pretrained = getattr(content.model, step.task).pretrained
    for name in sorted(networks - step.trained - learned):
        has_weights = name != "discriminator"
        if not (pretrained and has_weights):
            text = f"leaves the {name} as it was made, at random: train it, or put a step that "
            text += "does before it" + (
                f", or give model.{step.task}.pretrained" if has_weights else ""
            )
            yield ("freeze",) if name in step.frozen else (), f"step {step.name!r} {text}"


def _check_values(pipeline: Pipeline, step: Step) -> Problems:
    """The options of a step's training are right one by one, and then together."""
    flags = step_flags(pipeline, step)
    if step.task == "vae":
        flags.setdefault("image_path", [])  # what is missing is told as such
    keys = {key.flag: name for name, key in StepSection.keys().items()}

    def key_of(flag: str) -> Place:
        is_option = flag in step.settings.options
        return ("options", flag) if is_option else (keys.get(flag, flag or "options"),)

    for _ in range(2):
        try:
            read = OPTIONS[step.task](**flags)
            if step.task == "flow":
                no_samples = pipeline.content.output.no_samples
                read.check_guidance(draws=not no_samples or read.eval_steps > 0)
            return
        except ValueError as error:
            for name, text in getattr(error, "problems", [("", str(error))]):
                if name:
                    yield key_of(name), f"{name}: {in_words_of_file(text)}"
                elif not pipeline.document.problems:  # else it may be a consequence
                    flag = re.search(r"--(no_)?(\w+)|$", text)[2] or ""
                    yield key_of(flag), f"step {step.name!r}: {in_words_of_file(text)}"
                flags.pop(name, None)


def _check_transition(pipeline: Pipeline, step: Step) -> Problems:
    """A transition can happen, whatever the training logs."""
    transition, own = step.settings.transition_on, step.own.get("transition_on", {})
    if transition.mode == "epoch":
        said = own if "mode" in transition.model_fields_set else transition.model_fields_set
        for key in sorted({*said} - {"mode"}):
            text = f"transition_on.{key} has no effect in mode epoch; see n_epochs"
            yield ("transition_on", key), text
        return
    needed = ("metric", "threshold", "max_epochs")
    if missing := [key for key in needed if getattr(transition, key) is None]:
        text = "missing: mode loss_threshold needs a metric, a threshold and max_epochs as a limit"
        yield ("transition_on", "mode"), f"transition_on.{' and '.join(missing)} {text}"
    epochs, limit = step.own.get("n_epochs"), transition.max_epochs
    if limit and "steps" in step.own:
        text = "unreachable: steps ends the training, not max_epochs; leave one out"
        yield ("transition_on", "max_epochs"), text
    if limit and epochs and epochs < limit:
        text = f"unreachable: n_epochs {epochs} ends the step before max_epochs {limit}"
        yield ("transition_on", "max_epochs"), f"{text}; leave n_epochs out"
    name, bound = transition.metric, transition.threshold
    if name and name not in METRICS and not name.startswith("train/"):
        yield ("transition_on", "metric"), f"unknown metric {name!r}{nearest(name, METRICS)}"
    elif name != "g_loss" and name in METRICS and bound is not None and bound <= 0:
        yield ("transition_on", "threshold"), f"unreachable: {name} is never below 0"
