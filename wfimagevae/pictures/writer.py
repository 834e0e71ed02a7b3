"""Image files written by a few threads, so that encoding them does not hold up the device."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from wfimagevae.files import write_atomically

EXTENSIONS = {
    "png": {"compress_level": 4},
    "jpg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}


class ImageWriter:
    """Writes images under a folder; leaving the context waits for them and raises what failed."""

    def __init__(self, folder: str | Path, num_threads: int = 4):
        self.folder = Path(folder)
        self._pool = ThreadPoolExecutor(num_threads)
        self._pending: deque[Future] = deque()
        self._max_pending = 8 * num_threads

    def __enter__(self) -> "ImageWriter":
        return self

    def write(self, name: str | Path, content: Tensor | str) -> None:
        """Queues an 8-bit RGB image, (3, H, W), or a text, to be written to a path in it.

        The call waits while too many are queued.
        """
        while len(self._pending) >= self._max_pending:
            self._pending.popleft().result()
        save = _save_text if isinstance(content, str) else save_image
        self._pending.append(self._pool.submit(save, self.folder / name, content))

    def __exit__(self, error_type, error, traceback) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error_type is not None)
        if error_type is None:
            for future in self._pending:
                future.result()


def check_extension(path: str | Path) -> str:
    """The extension that decides the file's format; ValueError for one that we do not write."""
    extension = Path(path).suffix.lower().lstrip(".").replace("jpeg", "jpg")
    if extension not in EXTENSIONS:
        raise ValueError(f"{path}: unknown extension; write one of {', '.join(EXTENSIONS)}")
    return extension


def _save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_image(path: str | Path, pixels: Tensor) -> None:
    """Writes an 8-bit RGB image, (3, H, W); png and webp are lossless, jpg has quality 95.

    A file of this name is either whole or not there. Another extension is a ValueError.
    """
    from PIL import Image

    path = Path(path)
    extension = check_extension(path)
    kind = Image.registered_extensions()[f".{extension}"]
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    write_atomically(
        path, lambda file: image.save(file, kind, **EXTENSIONS[extension]), is_lasting=False
    )
