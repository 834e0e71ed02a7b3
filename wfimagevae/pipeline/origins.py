"""What a step's networks start from: random weights are never frozen. No torch here."""

from wfimagevae.pipeline.components import DECODER, DISCRIMINATOR, ENCODER, FLOW, TEXT_ENCODER
from wfimagevae.pipeline.document import Document
from wfimagevae.pipeline.schema import PipelineFile
from wfimagevae.pipeline.steps import MergedStep, is_gan_only

_UNFREEZE = {
    ENCODER: "train it (train_vae: true), put a step that does before it, or give "
    "model.vae.pretrained",
    DISCRIMINATOR: "put a step with gan_training before it, or leave freeze_discriminator out",
    FLOW: "put a step that trains it before, or give model.flow.pretrained",
    TEXT_ENCODER: "leave it out of freeze, put a step that trains it before, or give "
    "model.flow.pretrained",
}
_UNFREEZE[DECODER] = _UNFREEZE[ENCODER]


def check_origins(
    document: Document, content: PipelineFile, steps: list[MergedStep], step: MergedStep
) -> None:
    """Reports networks that a step would leave as they were made, and losses without a gradient."""
    before = steps[: step.index]
    learned = frozenset().union(*(other.trained for other in before))
    pretrained = getattr(content.model, step.task).pretrained
    for name in sorted(_held(step, content) - step.trained - learned):
        if pretrained and name != DISCRIMINATOR:
            continue
        document.report(
            step.origin(document, "freeze") if name in step.frozen else step.place,
            f"step {step.name!r} leaves the {name} as it was made, at random: {_UNFREEZE[name]}",
        )
    settings = step.settings
    constant = settings.lambda_adv is not None or is_gan_only(settings)
    options = settings.options
    adaptive = options.get("adaptive_weight", not options.get("no_adaptive_weight"))
    if settings.gan_training and adaptive and not constant and DECODER not in step.trained:
        document.report(
            step.origin(document, "gan_training"),
            f"step {step.name!r}: the adversarial term's adaptive weight compares gradients at "
            "the decoder's last layer, which this step does not train; give lambda_adv, a constant "
            "weight",
        )


def _held(step: MergedStep, content: PipelineFile) -> set[str]:
    """Components that a step has networks of."""
    if step.task == "vae":
        return {ENCODER, DECODER} | ({DISCRIMINATOR} if step.settings.gan_training else set())
    return {FLOW} | ({TEXT_ENCODER} if content.model.text_encoder == "bytes" else set())
