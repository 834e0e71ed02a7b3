import json

from scripts import plot_training
from tests.refusals import refused


def test_a_report_goes_into_a_folder_that_does_not_exist_yet(tmp_path, capsys):
    run_dir, output = tmp_path / "run", tmp_path / "new" / "folder" / "report.html"
    run_dir.mkdir()
    (run_dir / "options.json").write_text(json.dumps({"task": "flow", "lr": 0.5, "seed": 1234}))
    assert plot_training.main([str(run_dir), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    changed, unchanged = output.read_text().split("Options at their defaults")
    assert "<td>lr</td><td>0.5</td><td>0.0001</td>" in changed  # first what was changed
    assert "<td>seed</td><td>1234</td>" in unchanged


def test_another_folder_is_no_run(tmp_path):
    refused(r"no run's folder: neither options\.json nor", plot_training.main, [str(tmp_path)])
