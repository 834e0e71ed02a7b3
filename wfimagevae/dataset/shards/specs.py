"""Which tar shards are meant: files, brace patterns, globs, folders, URLs and pipes."""

import glob
import os
import re
from pathlib import Path

from wfimagevae.files import check_scheme
from wfimagevae.yaml_files import stands_in_file

COMMAND_IN_FILE = "a file is never a command; give --allow_pipe on the command line to run it"
URL = re.compile(r"^(pipe:|[a-zA-Z][a-zA-Z0-9+.-]*://)")


def is_remote(spec: str) -> bool:
    """Whether a shard is a URL or a pipe rather than a file; ValueError for unknown schemes."""
    check_scheme(spec)
    return bool(URL.match(spec)) and not spec.startswith("file:")


def expand_shards(spec: str | Path, allow_pipe: bool = False) -> list[str]:
    """The shards that a specification means, in order: absolute paths, URLs and pipes.

    It is a tar file, a folder of them, a glob, a URL, or ``pipe:COMMAND``. Braces (``{000..099}``),
    ``${NAME}`` for the environment variable WDS_NAME, and ``::`` between several are expanded as
    the webdataset library does. ValueError if nothing is there, or for a pipe that stands in a file
    of flags or steps, unless all pipes are allowed.
    """
    text = str(spec)
    parts = [text]
    if not os.path.exists(os.path.expanduser(text)):
        from webdataset.shardlists import expand_urls

        try:
            parts = expand_urls(text)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"shards {text}: cannot be expanded ({error})") from None
    shards = [shard for part in parts for shard in _local_shards(part)]
    is_command = any(shard.startswith("pipe:") for shard in shards)
    if is_command and not allow_pipe and stands_in_file(text):
        raise ValueError(f"{text}: {COMMAND_IN_FILE}")
    return shards


def _local_shards(text: str) -> list[str]:
    if is_remote(text):
        return [text]
    path = os.path.abspath(os.path.expanduser(text.removeprefix("file://").removeprefix("file:")))
    if os.path.isdir(path):
        names = sorted(n for n in os.listdir(path) if n.endswith(".tar") and n[0] != ".")
        shards = [os.path.join(path, name) for name in names]
    elif os.path.isfile(path):
        shards = [path]
    elif set(text) & set("*?["):
        shards = sorted(glob.glob(path, recursive=True))
    else:
        raise ValueError(f"shard {path} does not exist")
    if not shards:
        raise ValueError(f"no shards match {path}; expected tar files")
    return shards
