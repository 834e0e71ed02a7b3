"""A pipeline file, read and checked: all that is wrong with it, or the steps to train."""

from dataclasses import dataclass
from pathlib import Path

from wfimagevae.pipeline.checks import check_pipeline
from wfimagevae.pipeline.document import Document
from wfimagevae.pipeline.flags import OptionClasses, parsers
from wfimagevae.pipeline.reading import read_pipeline
from wfimagevae.pipeline.schema import PipelineFile
from wfimagevae.pipeline.steps import MergedStep, merge_steps


@dataclass(frozen=True)
class LoadedPipeline:
    """A checked file.

    Attributes:
        document: Its lines.
        content: What it says.
        steps: With all that they inherit.
        parsers: Each task's.
    """

    document: Document
    content: PipelineFile
    steps: list[MergedStep]
    parsers: OptionClasses

    @property
    def output(self) -> Path:
        """Where everything goes."""
        return Path(self.content.output.output_path)


def load_pipeline(path: str | Path) -> LoadedPipeline:
    """Reads and checks a pipeline file, without importing torch.

    Raises:
        PipelineError: with everything that is wrong, by line.
    """
    document, content = read_pipeline(path)
    if content is None:
        document.check()
    steps, known = merge_steps(content), parsers()
    check_pipeline(document, content, steps, known)
    document.check()
    return LoadedPipeline(document, content, steps, known)
