"""One finished pipeline, which several files of tests look at and go on with copies of."""

import pytest

from tests.pipeline.files import PipelinePlace
from wfimagevae.pipeline.checks import load_pipeline


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return PipelinePlace(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="package")
def done(place):
    """A finished pipeline, with plots; and what it printed."""
    content = place.content("done")
    content["output"] |= {"generate_diagrams": True, "sample_sizes": [32, [48, 32]]}
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr(
            "wfimagevae.engine.report.progress.log.info", lambda text, *a: lines.append(text % a)
        )
        output = place.run(content)
    return content, output, lines


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return load_pipeline(path)

    return load
