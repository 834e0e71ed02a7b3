"""The table of patch scores: each step's rows once, also after a run went back."""

import csv

from wfimagevae.pictures.patch_maps import SUMMARY, append_summary


def rows_of(*steps):
    return [[step, f"{i}.png", 0.5, -0.5, -1.0, 0.0] for step in steps for i in range(2)]


def test_a_run_that_went_back_has_each_row_once(tmp_path):
    path = tmp_path / "new" / "summary.csv"
    for step in (2, 4, 10, 4):
        append_summary(path, rows_of(step))
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(SUMMARY)
    assert rows == [[str(value) for value in row] for row in rows_of(2, 4)]
    path.write_text(path.read_text() + "5,0.png,0.5")  # a line that a kill cut short
    append_summary(path, rows_of(6))
    steps = [line.split(",")[0] for line in path.read_text().splitlines()]
    assert steps == ["step", "2", "2", "4", "4", "6", "6"]
