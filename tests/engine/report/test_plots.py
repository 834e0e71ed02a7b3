"""Loss plots: any columns, gaps, long runs; the curves that are drawn are those of the file."""

import csv

import numpy as np
import pytest
from PIL import Image

from wfimagevae.engine.report.plots import plot_losses, read_losses

HEADER = ["step", "epoch", "train/rec_loss_per_pixel", "train/disc_loss", "grad_norm/generator"]


def write_csv(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def alternating_rows(count):
    """Even steps are the generator's, odd ones the discriminator's; the other's cell is blank."""
    for step in range(count):
        is_generator = step % 2 == 0
        yield [step, 0, 1 / (1 + step) if is_generator else "", "" if is_generator else 0.5, "nan"]


def drawn_pixels(path):
    with Image.open(path) as image:
        return int((np.asarray(image.convert("L")) < 250).sum())


def test_blank_and_non_finite_cells_are_gaps_not_zeros(tmp_path):
    series = read_losses(write_csv(tmp_path / "losses.csv", alternating_rows(10)))
    assert set(series) == {"train/rec_loss_per_pixel", "train/disc_loss"}
    steps, values = series["train/rec_loss_per_pixel"]
    assert steps.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(values, 1 / (1 + steps))


def test_two_pages_are_drawn_and_nothing_else_is_left(tmp_path):
    path = write_csv(tmp_path / "losses.csv", alternating_rows(50))
    pages = plot_losses(path, tmp_path / "training_losses_live")
    names = ["training_losses_live_page1.png", "training_losses_live_page2.png"]
    assert [page.name for page in pages] == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["losses.csv", *names]
    assert all(drawn_pixels(page) > 500 for page in pages)


def test_unknown_columns_and_validation_figures_are_drawn_too(tmp_path):
    plain = write_csv(tmp_path / "a.csv", [[1, 2.0]], ["step", "train/rec_loss_per_pixel"])
    (page1,) = plot_losses(plain, tmp_path / "a")  # nothing is known for the other one
    columns = ["step", "train/rec_loss_per_pixel", "mfu"]
    more = write_csv(tmp_path / "b.csv", [[1, 2.0, 3.0]], columns)
    (tmp_path / "validation.jsonl").write_text('{"step": 1, "val/psnr": 20.0}\n')
    both = plot_losses(more, tmp_path / "b")
    assert drawn_pixels(both[0]) > drawn_pixels(page1)
    assert len(both) == 2


@pytest.mark.parametrize("text", ["", "step\n", "step,train/rec_loss\n", "step,a\n1\n2,x\n"])
def test_empty_or_broken_files_give_no_pages(tmp_path, text):
    path = tmp_path / "losses.csv"
    path.write_text(text)
    plot_losses(path, tmp_path / "live")
    assert list(tmp_path.iterdir()) == [path]


def test_thinning_keeps_both_players_and_the_latest_row(tmp_path):
    series = read_losses(write_csv(tmp_path / "losses.csv", alternating_rows(20_001)))
    generator, discriminator = (series[name][0] for name in HEADER[2:4])
    assert generator[-1] == 20_000
    assert 0.7 < len(generator) / len(discriminator) < 1.4
    assert len(generator) + len(discriminator) <= 1500
