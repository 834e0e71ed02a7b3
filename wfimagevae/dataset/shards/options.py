"""Options of writing shards. No torch here."""

from typing import Annotated, Literal

from pydantic import Field

from wfimagevae.options import Count, Integer, Natural, Options, Switch, option


class WriteOptions(Options):
    """output"""

    output_dir: str = option(..., "where the shards go", "DIR")
    samples_per_shard: Count = option(
        4096, "samples a shard; processes share out whole shards", "N"
    )
    resize: Natural = option(0, "shrink larger images to this short side; 0: none", "PX")
    format: Literal["keep", "jpg", "png", "webp"] = option(
        "keep", "keep copies files as they are, but for those that are shrunk"
    )
    quality: Annotated[Count, Field(le=100)] = option(
        95, "of jpg and webp files that are encoded anew, 1 to 100", "Q"
    )
    shuffle: Switch = option(True, "mix the order of images, else it is that of their paths")
    seed: Integer = option(1234, "of that order", "N")
