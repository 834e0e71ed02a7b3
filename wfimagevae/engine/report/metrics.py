"""Numbers of a run: averaged on the device, written to CSV and JSON lines."""

import csv
import io
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from wfimagevae.engine.distributed import all_reduce_mean
from wfimagevae.engine.options import LoggingOptions
from wfimagevae.files import read_json_lines, write_text


class Means:
    """Running means of device scalars, fetched with one transfer.

    A value may also be a pair (sum, weight): its mean is that of all sums over all weights, left
    out where nothing had weight. A scalar is a sum of weight one.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds detached scalars or pairs; nothing waits for the device."""
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1

    def fetch(self) -> dict[str, float]:
        """Means since the last call over steps and ranks; waits for the device. Collective."""
        if not self._sums:
            return {}
        means = [self._sums[key].float() / count for key, count in self._counts.items()]
        means = [torch.stack([m, torch.ones_like(m)]) if m.dim() == 0 else m for m in means]
        pairs = all_reduce_mean(torch.stack(means)).tolist()
        names = list(self._counts)
        self.__init__()
        return {n: sum_ / w for n, (sum_, w) in zip(names, pairs, strict=True) if w}

    def state_dict(self) -> dict[str, tuple[Tensor, int]]:
        """This process's sums and counts since the last fetch, on the CPU."""
        return {name: (self._sums[name].cpu(), count) for name, count in self._counts.items()}

    def load_state_dict(self, state: dict[str, tuple[Tensor, int]], device: torch.device) -> None:
        self._sums = {name: total.to(device) for name, (total, _) in state.items()}
        self._counts = {name: count for name, (_, count) in state.items()}


def csv_log_path(options: LoggingOptions, folder: Path) -> Path | None:
    """The losses' CSV file of the run in a folder, if there is to be one."""
    path = Path(options.csv_log_path or folder / "training_losses.csv")
    return None if options.disable_csv_log else path


def check_csv_log(path: Path | None) -> None:
    """Raises ValueError where there is something that is no log of losses."""
    if path is None or not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no file; give another --csv_log_path, or --disable_csv_log")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        columns = csv.DictReader(file).fieldnames
    if columns and "step" not in columns:
        raise ValueError(
            f"{path} is no log of losses: its columns are {', '.join(columns):.80}; give another "
            "--csv_log_path"
        )


class CsvLog:
    """A CSV file that grows by rows and, when a new name appears, by columns.

    An existing file is continued, without rows after ``resume_step``, which come again.
    """

    def __init__(self, path: Path, resume_step: int):
        self.path, self.columns = path, ["step"]
        if path.exists():
            columns, rows = self._read()
            self.columns = columns or self.columns
            # A kill may have cut the last line short.
            rows = [row for row in rows if None not in row.values() and row["step"].isdigit()]
            self._rewrite([row for row in rows if int(row["step"]) <= resume_step])

    def write(self, row: dict[str, float]) -> None:
        new = [key for key in row if key not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite([*(self._read()[1] if self.path.exists() else ()), row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _read(self) -> tuple[list[str], list[dict]]:
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), list(reader)

    def _rewrite(self, rows: list[dict]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class JsonLines:
    """A file of one JSON object a line, continued like a `CsvLog`."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        if path.exists():
            rows = read_json_lines(path)
            kept = [row for row in rows if row.get("step", math.inf) <= resume_step]
            write_text(path, "".join(map(_json_line, kept)))

    def write(self, row: dict) -> None:
        """Appends a row; numbers that JSON cannot hold become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json_line(row))


def _json_line(row: dict) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
