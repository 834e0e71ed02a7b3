"""Runs the steps of a pipeline, each by its own task's training; goes on where it was stopped."""

import gc
import importlib
import logging
import os
import time

from wfimagevae.engine.distributed import World, broadcast_object, world
from wfimagevae.engine.options import TrainingOptions
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.pipeline.document import PipelineError
from wfimagevae.pipeline.flags import image_size, parse_flags, step_flags, step_folder
from wfimagevae.pipeline.inheritance import step_options, vae_source
from wfimagevae.pipeline.loading import LoadedPipeline, load_pipeline
from wfimagevae.pipeline.networks import VaeFacts, network_config, vae_facts, write_configs
from wfimagevae.pipeline.planning import describe_plan
from wfimagevae.pipeline.preparing import cache_latents, prepare_autoencoder
from wfimagevae.pipeline.progress import changed_options, keep_network, read_state
from wfimagevae.pipeline.samples import FlowSamples, SamplePlan, VaeSamples
from wfimagevae.pipeline.sizes import parse_sizes
from wfimagevae.pipeline.steps import MergedStep
from wfimagevae.pipeline.watching import StepWatcher, WatchedStep
from wfimagevae.task.flow_validation import sampling_options

log = logging.getLogger("wfimagevae")


def run_file(path: str, only_validate: bool) -> int:
    """Checks a pipeline's file and trains its steps, or prints what it would train.

    Returns:
        The exit status.
    """
    try:
        loaded = load_pipeline(path)
        if only_validate:
            print("\n".join(describe_plan(loaded)))
        else:
            run_pipeline(loaded)
    except PipelineError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        return 2  # the same on every process of a machine: the first one tells it
    return 0


def run_pipeline(loaded: LoadedPipeline) -> bool:
    """Trains all steps that are not finished.

    Args:
        loaded: A checked file.

    Returns:
        True if all steps are finished, False if a signal stopped one.

    Raises:
        PipelineError: finished steps were trained as another file says.
        ValueError: options that cannot be met, or training that diverged.
    """
    with world(loaded.content.training.device or "auto") as here:
        if not here.is_main:
            logging.getLogger("wfimagevae").setLevel(logging.WARNING)
        runner = _Runner(loaded, here)
        runner.check()
        for step in loaded.steps:
            if not runner.run(step):
                return False
    log.info("the pipeline is finished: %s", loaded.output)
    return True


class _Runner:
    """The steps in turn.

    Args:
        loaded: A checked file.
        here: This process and the others.
    """

    def __init__(self, loaded: LoadedPipeline, here: World):
        self.loaded, self.here = loaded, here
        self.content, self.steps = loaded.content, loaded.steps
        self.started = time.perf_counter()

    def check(self) -> None:
        """Logs the plan of what is left to do, and writes what it names into the output.

        Raises:
            PipelineError: what is finished was not trained as the file says, or what is left
                cannot be.
        """
        error = None
        if self.here.is_main:
            try:
                log.info("%s", "\n".join(describe_plan(self.loaded)))
                write_configs(self.content)
            except (ValueError, OSError) as found:  # else the others would wait for ever
                error = str(found)
        if error := broadcast_object(error):
            raise PipelineError(error)
        self.vae: VaeFacts = vae_facts(self.content)

    def run(self, step: MergedStep) -> bool:
        """Trains a step unless it is finished; False if a signal stopped it. Collective."""
        folder, count = step_folder(self.content, step), len(self.steps)
        state = broadcast_object(read_state(folder) if self.here.is_main else None)
        title = f"step {step.name} ({step.index + 1}/{count})"
        if state.finished:
            log.info("%s is finished: %s", title, state.checkpoint)
            return True
        options = step_options(self.loaded, self.vae, step)
        log.info("%s", f"{title}: {step.settings.description}".removesuffix(": "))
        if changed := changed_options(state, options.values()):
            log.warning("%s goes on with other options: %s", title, "; ".join(changed))
        if self.here.is_main:
            keep_network(folder, network_config(self.content, self.vae, step.task))
        self._prepare(step, options)
        watcher = self._watcher(step, options)
        task = importlib.import_module(f"wfimagevae.task.{step.task}")
        done = task.train(options, folder, watcher)
        if self.here.is_main:
            watcher.sum_up()
        gc.collect()  # networks and data of this step, before the next one's
        return done

    def _prepare(self, step: MergedStep, options: TrainingOptions) -> None:
        """Measures, and caches, the latents that a flow step learns."""
        source = vae_source(self.loaded, step) if step.task == "flow" else None
        if source is None:
            return
        folder = step_folder(self.content, step)
        plain = options.changed(**self._uncached(step))
        target = prepare_autoencoder(folder, self.vae.name, source, plain, self.here)
        if step.settings.cache_latents:
            held_out = plain.eval_data_path if options.eval_steps else None
            for kind, paths in (("latents", plain.data_path), ("held_out_latents", held_out)):
                if paths:
                    spec = f"{self.vae.name}:{target}"
                    cache_latents(folder / kind, spec, paths, plain, self.here)

    def _uncached(self, step: MergedStep) -> dict:
        """The data itself, in place of cached latents of it."""
        loaded = self.loaded
        flags, _ = step_flags(step, self.content, loaded.document, loaded.parsers)
        options = parse_flags(loaded.parsers[step.task], flags)
        names = ("dataset", "data_path", "eval_data_path", "captions", "resolution")
        return {name: getattr(options, name) for name in (*names, "fixed_prompt_prefix")}

    def _watcher(self, step: MergedStep, options: TrainingOptions) -> StepWatcher:
        output, size = self.content.output, image_size(step, self.content)
        latents = self.vae.units(size).latents if step.task == "vae" else None
        drawer = None if output.no_samples else self._drawer(step, options)
        watched = WatchedStep(
            step.name,
            [other.name for other in self.steps],
            None if options.max_steps else options.epochs,
            self.loaded.output,
            latents,
            {"kl_weight": options.kl_weight} if step.task == "vae" else {},
            output.samples_per_checkpoint,
            output.generate_diagrams,
            self.started,
        )
        return StepWatcher(watched, drawer)

    def _drawer(
        self, step: MergedStep, options: TrainingOptions
    ) -> VaeSamples | FlowSamples | None:
        output = self.content.output
        pictures = output.test_image_address
        pictures = [pictures] if isinstance(pictures, str) else pictures
        subjects = pictures if step.task == "vae" else output.sample_captions
        if step.task == "vae" and not subjects:
            return None
        plan = SamplePlan(
            self.loaded.output / "samples",
            step.name,
            step.index + 1,
            subjects,
            parse_sizes(output.sample_sizes or [image_size(step, self.content)]),
            options.seed,
            options.mix_precision,
        )
        if step.task == "vae":
            return VaeSamples(plan)
        sampling: SamplingOptions = sampling_options(options)
        return FlowSamples(plan, sampling)
