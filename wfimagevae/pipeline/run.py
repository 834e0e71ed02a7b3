"""Runs the steps of a pipeline, each by its own task's training; goes on where it was stopped."""

import gc
import importlib
import logging
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from wfimagevae.dataset import Captions, IndexedImages, Labels
from wfimagevae.dataset.open import only_source
from wfimagevae.engine.distributed import World, barrier, broadcast_object, world
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.export.folder import write_model
from wfimagevae.files import DIFFUSERS, read_json, sole_writer, write_json
from wfimagevae.generate.autoencoders import load_autoencoder, load_vae
from wfimagevae.generate.latent_cache import LatentCache, measure_latents, write_normalization
from wfimagevae.generate.options import AutoencoderOptions, CacheOptions
from wfimagevae.model.text import open_text_encoder
from wfimagevae.pipeline.flags import step_flags
from wfimagevae.pipeline.fluxflow import OPTIONS
from wfimagevae.pipeline.instead import in_words_of_file
from wfimagevae.pipeline.networks import network_config, step_options, vae_facts, vae_source
from wfimagevae.pipeline.plan import NETWORK_FILE, describe_plan, read_state
from wfimagevae.pipeline.steps import Pipeline, PipelineError, Step
from wfimagevae.pipeline.watch import StepWatcher
from wfimagevae.task.flow_space import build_datasets

log = logging.getLogger("wfimagevae")

MEASURED_IMAGES = 4096
_RECORD = "measured.json"


def run_pipeline(pipeline: Pipeline) -> bool:
    """Trains all steps that are not finished, until a signal stops one: then returns False.

    Steps that were trained as another file says, or what cannot be trained, are a PipelineError,
    options that cannot be met, or training that diverged, a ValueError.
    """
    device = pipeline.content.training.device or "auto"
    # One group for all.
    timeout = max(OPTIONS[s.task](**step_flags(pipeline, s)).ddp_timeout for s in pipeline.steps)
    with world(device, timeout) as here, sole_writer(pipeline.output, here.is_main):
        error, started = None, time.perf_counter()
        if here.is_main:
            try:
                for line in describe_plan(pipeline):
                    log.info("%s", line)
            except (ValueError, OSError) as problem:  # else the others would wait for ever
                error = str(problem)
        if error := broadcast_object(error):
            raise PipelineError(error)
        try:
            done = all(_run_step(pipeline, step, here, started) for step in pipeline.steps)
        except ValueError as error:
            raise ValueError(in_words_of_file(str(error))) from error
        if done:
            log.info("the pipeline is finished: %s", pipeline.output)
        return done


def _run_step(pipeline: Pipeline, step: Step, here: World, started: float) -> bool:
    """Trains a step unless it is finished; False if a signal stopped it. Collective."""
    content, folder = pipeline.content, pipeline.folder(step)
    state = broadcast_object(read_state(folder) if here.is_main else None)
    title = f"step {step.name} ({step.index + 1}/{len(pipeline.steps)})"
    if state.finished:
        log.info("%s is finished: %s", title, state.checkpoint)
        return True
    vae = vae_facts(content.model)
    options = step_options(pipeline, vae, step)
    log.info("%s", f"{title}: {step.settings.description}".removesuffix(": "))
    if here.is_main:  # beside its checkpoints, the configuration of what it trains
        write_json(folder / NETWORK_FILE, network_config(pipeline, vae, step))
    if step.task == "flow" and (source := vae_source(pipeline, step)):
        # Latents, by the options of training on the images themselves.
        on_images = OPTIONS["flow"](**step_flags(pipeline, step))
        if not source.startswith(DIFFUSERS):
            prepare_autoencoder(folder, vae.name, source, on_images, here)
        if step.settings.cache_latents:
            held_out = on_images.eval_data_path if on_images.eval_steps else None
            for kind, paths in (("latents", on_images.data_path), ("held_out_latents", held_out)):
                if paths:
                    cache_latents(folder / kind, options.vae, paths, on_images, here)
    watcher = StepWatcher(pipeline, step, options, vae.latents(step), started)
    task = importlib.import_module(f"wfimagevae.task.{step.task}")
    done = task.train(options, folder, watcher)
    if done:
        gc.collect()  # networks and data of this step, before the next one's
    return done


def prepare_autoencoder(
    folder: Path, name: str, source: str, options: TrainingOptions, here: World
) -> None:
    """Writes a Hugging Face folder of the VAE with shift and scale measured on a flow's data.

    Made once: a folder of the same source and data is taken as it is. If no image can be encoded,
    or a latent channel does not vary, it is a ValueError. Collective.
    """
    target, values = folder / "autoencoder", options.values()
    names = ("dataset", "data_path", "resolution", "train_crop", "seed", "num_shapes")
    # An output that was moved, or is spelled otherwise, holds the same weights.
    steps, place = folder.absolute().parent, Path(source).absolute()
    relative = str(place.relative_to(steps)) if place.is_relative_to(steps) else source
    record = {"source": relative} | {n: values.get(n) for n in names}
    path = target / _RECORD
    if path.exists() and read_json(path) == record:
        return
    vae = load_vae(AutoencoderOptions(model_name=name, from_pretrained=source))
    # At one size: channels' statistics are those of the images, however they are cut.
    plain = options.changed(eval_steps=0, aspect_buckets=0, reduced_min_sizes=[])
    dataset, _ = build_datasets(plain)
    count = min(len(dataset), MEASURED_IMAGES)
    log.info("measuring shift and scale of the latents of %s on %d images", source, count)
    mine, size = range(count)[here.rank :: here.size], options.batch_size
    parts = tqdm(range(0, len(mine), size), desc="encode", disable=not here.is_main)
    batches = (
        dataset.to_inputs(dataset.read_batch(list(mine[i : i + size])), here.device)["image"]
        for i in parts
    )
    mean, std = measure_latents(vae.eval(), batches, here, options.mix_precision)
    if here.is_main:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write_model(vae.cpu(), target)
        write_normalization(target / "config.json", mean, std)
        write_json(path, record)  # last: with it, the folder is whole
    barrier()


def cache_latents(
    folder: Path, vae: str, source: list[str], options: TrainingOptions, here: World
) -> None:
    """Encodes a folder or manifest of images once; goes on where it was stopped. Collective.

    Sources that cannot be cached, or latents that are not finite, are a ValueError.
    """
    source, size = only_source(source, "images"), options.resolution
    captions = Captions(options.captions, options.fixed_prompt_prefix)
    labels, index = Labels(options.labels), options.index_cache_dir
    images = IndexedImages(source, size, labels, captions, index)
    autoencoder = load_autoencoder(vae, here.device)
    encoder, text = options.text_encoder, None
    if encoder and encoder != "bytes":
        how = options.text_length, options.text_encoder_precision
        text = open_text_encoder(encoder, here.device, *how)
    cached = CacheOptions(
        mixed_precision=options.mix_precision,
        batch_size=options.batch_size,
        num_workers=options.dataset_num_worker,
        normalization="vae",
        latent_dtype="fp32" if options.mix_precision == "fp32" else "fp16",
    )
    LatentCache(autoencoder, vae, images, folder, cached, text).run(here)
