"""What samples show: classes, prompts, or neither."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Subject:
    """One sample to draw.

    Attributes:
        index: Its number, which with the seed decides its noise.
        label: Its class; None is no class.
        prompt: Its text; None is no text.
    """

    index: int
    label: int | None = None
    prompt: str | None = None


def subjects_in_turn(
    count: int, labels: Sequence[int] = (), prompts: Sequence[str] = ()
) -> list[Subject]:
    """Samples 0 to count - 1, which take classes and prompts in turn; none of what is empty."""
    return [
        Subject(
            i,
            labels[i % len(labels)] if labels else None,
            prompts[i % len(prompts)] if prompts else None,
        )
        for i in range(count)
    ]
