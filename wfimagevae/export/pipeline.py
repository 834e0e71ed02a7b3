"""A trained flow as a pipeline of diffusers: an export's pipeline.py is made of this."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.image_processor import VaeImageProcessor

from wfimagevae.engine.device import PRECISIONS
from wfimagevae.generate.autoencoders import Autoencoder
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import prompt_subjects, subjects_in_turn
from wfimagevae.model.text import open_text_encoder


class FlowPipeline(DiffusionPipeline):
    """Images of prompts or classes, the same that generate.py draws from the same seed.

    Args:
        transformer: The network that predicts velocities.
        vae: The autoencoder of a flow in its latents.
        facts: What training recorded: ``space``, ``objective``, ``shift`` and ``scale``, ...
        text_encoder: KIND:PATH of a frozen text encoder that is no longer where it was in training.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar = ["vae"]

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin | None = None,
        facts: dict | None = None,
        text_encoder: str | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(facts=facts, text_encoder=text_encoder)
        self._text = None

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the words of diffusers' pipelines
        self,
        prompt: str | Sequence[str] | None = None,
        class_labels: Sequence[int | str] | int | str | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **sampling,
    ) -> ImagePipelineOutput | tuple:
        """Draws images, each of its prompt or class, its number and the seed alone.

        Classes, numbers or names, are taken in turn; without any, or a prompt, all are. The images
        of a prompt, or all without prompts, are numbered from 0. Without ``seed``, ``generator``
        draws one. ``output_type`` is ``pil``, ``np``, ``pt`` or ``latent``, of which the last is
        the sample itself, as always of points; ``sampling`` are the other fields of
        `SamplingOptions`: guidance_scale, negative_prompt, sampler, time_shift, ...
        """
        flow = self._flow()
        if seed is None:
            seed = int(torch.randint(2**31, (), generator=generator))
        options = SamplingOptions(steps=num_inference_steps, seed=seed, **sampling)
        options, size = flow.resolve(options), flow.sample_size(height, width)
        # What to draw, in the order of the images.
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if prompts is None and flow.model.takes_text:
            prompts = [""]
        labels = [class_labels] if isinstance(class_labels, int | str) else class_labels
        names, count = None if labels is None else [str(c) for c in labels], num_images_per_prompt
        labels = flow.class_numbers(names) if names or not prompts else []
        if prompts:
            subjects = prompt_subjects(prompts, count, labels)
        else:
            subjects = subjects_in_turn(count * len(names or [""]), labels)

        with self.progress_bar(total=options.steps) as bar:
            x = flow.draw(subjects, options, size, progress=lambda *_: bar.update())
        if flow.facts["space"] != "point" and output_type != "latent":
            x = VaeImageProcessor().postprocess(flow.images(x), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=x) if return_dict else (x,)

    def _flow(self) -> FlowGenerator:
        """The network with its parts, where they are now."""
        facts, device, decode = dict(self.config.facts), self._execution_device, None
        dtypes = {dtype: name for name, dtype in PRECISIONS.items()}
        precision = dtypes[self.transformer.dtype]
        if facts["space"] == "latent":
            normalization = facts["shift"], facts["scale"]
            vae = Autoencoder(self.vae, facts["downsampling"], normalization, precision)
            decode = vae.to_images
        text = facts.get("text")
        if self.config.text_encoder:
            text = text | {"source": self.config.text_encoder.partition(":")[2]}
        if text and self._text is None:
            self._text = open_text_encoder(text, device)
        parts = (self.transformer, device, facts, decode, self._text)
        return FlowGenerator(*parts, facts.get("downsampling", 1), precision)
