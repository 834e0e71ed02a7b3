"""Means, CSV and JSON lines."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.task.training import rows
from wfimagevae.engine.report.progress import CsvLog, JsonLines, Means


def test_means_weigh_each_name_by_its_own_count():
    means = Means()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    means.add({"a": torch.tensor(3.0)})
    assert means.fetch() == {"a": 2.0, "b": 10.0}
    assert means.fetch() == {}


def test_pairs_are_pooled_and_left_out_without_weight():
    means = Means()
    for pair in ([6.0, 3.0], [2.0, 1.0]):
        means.add({"bin": torch.tensor(pair), "empty": torch.zeros(2)})
    assert means.fetch() == {"bin": 2.0}


def test_csv_gains_columns_and_leaves_blanks(tmp_path):
    log = CsvLog(tmp_path / "losses.csv", 0)
    log.write({"step": 10, "a": 1.0})
    log.write({"step": 20, "b": 2.0})
    log.write({"step": 30, "a": 3.0, "b": 4.0})
    assert rows(log.path) == [
        {"step": "10", "a": "1.0", "b": ""},
        {"step": "20", "a": "", "b": "2.0"},
        {"step": "30", "a": "3.0", "b": "4.0"},
    ]


def test_resuming_drops_rows_that_come_again_and_a_torn_last_line(tmp_path):
    log = CsvLog(tmp_path / "losses.csv", 0)
    for step in (10, 20, 30):
        log.write({"step": step, "a": step})
    with log.path.open("a") as file:
        file.write("4")
    again = CsvLog(log.path, 20)
    again.write({"step": 30, "a": 31})
    assert [int(row["a"]) for row in rows(log.path)] == [10, 20, 31]


def test_json_lines_stay_valid_and_resume(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1, "psnr": float("inf"), "metrics": {"a": float("nan"), "b": 1.0}})
    log.write({"step": 2, "psnr": 30.0})
    log.write({"step": 3, "psnr": 31.0})
    with log.path.open("a") as file:
        file.write('{"step": 4, "ps')
    JsonLines(log.path, 2)
    first, second = rows(log.path)
    assert first == {"step": 1, "psnr": None, "metrics": {"a": None, "b": 1.0}}
    assert second == {"step": 2, "psnr": 30.0}


@pytest.mark.parametrize("content", ["", "step,a\n"])
def test_empty_files_are_continued(tmp_path, content):
    path = tmp_path / "losses.csv"
    path.write_text(content)
    CsvLog(path, 5).write({"step": 6, "a": 1})
    assert rows(path) == [{"step": "6", "a": "1"}]


def test_means_go_on_where_they_were_saved():
    whole, cut, resumed = Means(), Means(), Means()
    parts = [{"a": torch.tensor(float(i)), "bin": torch.tensor([i, 2.0])} for i in range(4)]
    for part in parts:
        whole.add(part)
    for part in parts[:3]:
        cut.add(part)
    resumed.load_state_dict(cut.state_dict(), torch.device("cpu"))
    resumed.add(parts[3])
    assert resumed.fetch() == whole.fetch()


def test_many_names_cost_few_operations():
    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    means = Means()
    values = {str(i): torch.tensor(float(i)) for i in range(30)} | {"bin": torch.tensor([6.0, 3.0])}
    means.add(values)
    with Counter() as adding:
        means.add(values)
    assert adding.count == 1
    with Counter() as fetching:
        fetched = means.fetch()
    assert fetching.count < 40  # flat views of all, which are no kernels, and three that are
    assert fetched == {str(i): float(i) for i in range(30)} | {"bin": 2.0}
    assert values["7"] == 7 and values["bin"].tolist() == [6.0, 3.0]
