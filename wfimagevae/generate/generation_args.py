"""Flags that choose a trained flow and how to sample from it. No torch here."""

from argparse import ArgumentTypeError
from collections.abc import Sequence

from wfimagevae.engine.args import (
    Parser,
    non_negative_float,
    positive_float,
    positive_int,
    probability,
)

SAMPLERS = ("euler", "heun", "rk4", "dopri5", "dpmpp", "euler_maruyama", "mean_flow")
POINT_SETS = ("five_gaussians", "moons", "checkerboard", "rings")


def prompt_text(text: str) -> str:
    """A prompt of the command line, whose bytes need not be text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(f"{text!r} is not UTF-8 text") from None
    return text


def add_generator_args(parser: Parser) -> None:
    """Declares which flow to load; `load_generator` reads it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--from_pretrained",
        required=True,
        metavar="PATH",
        help="a training checkpoint, a run's folder, an export, a hub name, or a public SiT file",
    )
    group.add_argument(
        "--model_name",
        metavar="NAME",
        help="size of a public SiT file, such as DiT-XL/2; ours say it themselves",
    )
    group.add_argument(
        "--vae",
        metavar="KIND:PATH",
        help="autoencoder of a latent flow, WFVAE2Image:PATH or diffusers:PATH_OR_NAME; not given: "
        "the one that the training recorded",
    )
    group.add_argument(
        "--text_encoder",
        metavar="KIND:PATH",
        help="where the text encoder of a text flow is now: clip:, t5: or bert: and a path or hub "
        "name; not given: where it was in training",
    )
    group.add_argument(
        "--use_raw_weights",
        action="store_true",
        help="take a checkpoint's raw weights, not their moving average (EMA)",
    )


def add_sampling_args(parser: Parser) -> None:
    """Declares sampler, steps and guidance."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="not given: mean_flow for a MeanFlow model, else heun",
    )
    group.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="not given: 1 for mean_flow, else 25 (dopri5 chooses its own)",
    )
    group.add_argument(
        "--guidance_scale",
        type=non_negative_float,
        default=1.0,
        metavar="W",
        help="classifier-free guidance; 1 is none, 0 ignores the class and the prompt",
    )
    group.add_argument(
        "--negative_prompt",
        type=prompt_text,
        default="",
        metavar="TEXT",
        help="what guidance leads away from; acts with a guidance scale other than 1",
    )
    group.add_argument(
        "--guidance_interval",
        type=probability,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="times that are guided; 0 is noise, 1 is data",
    )
    group.add_argument(
        "--guidance_rescale",
        type=probability,
        default=0.0,
        metavar="P",
        help="share by which guidance is brought back to the unguided contrast",
    )
    group.add_argument(
        "--guidance_channels",
        type=positive_int,
        metavar="N",
        help="guide the first N channels only; public SiT samples: 3",
    )
    group.add_argument(
        "--time_shift",
        type=positive_float,
        default=1.0,
        metavar="S",
        help="above 1 spends more steps near the noise",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all samples")


def check_guidance(negative_prompt: str, scales: Sequence[float]) -> None:
    """Raises ValueError for a negative prompt that would do nothing, or a scale given twice."""
    if negative_prompt and set(scales) == {1.0}:
        raise ValueError("--negative_prompt acts through guidance: give a --guidance_scale above 1")
    shown = [f"{scale:g}" for scale in scales]  # as files and tables call them
    if twice := [scale for scale in shown if shown.count(scale) > 1]:
        raise ValueError(f"--guidance_scale {' '.join(shown)}: give {twice[0]} once")
