"""--dry_run: figures of a training before it begins, against what training itself holds."""

import contextlib
import re
from collections.abc import Callable

import pytest

from tests.task.test_glide import GlidePlace
from tests.task.training import Trainings, Workplace, load
from train_ddp import main
from wfimagevae.engine import dry_run
from wfimagevae.engine.options import GPU_MEMORY
from wfimagevae.engine.report.gpu import peak_flops

OPTIONS = {"batch_size": 4, "ema": True}


def workplace(kind, folder) -> Trainings:
    if kind == "vae":
        return Workplace(folder)
    if kind == "glide":
        return GlidePlace(folder)
    place = Trainings(folder, task="flow", dataset="shapes", model_name="SmallCNN", num_shapes=64)
    place.script = "train_ddp.py"
    return place


@pytest.fixture
def dry(capsys) -> Callable[..., str]:
    """What a dry run prints."""

    def run(place, **options):
        assert main(place.flags("dry", 10, dry_run=True, **OPTIONS | options)) == 0
        assert not (place.folder / "results").exists()
        return capsys.readouterr().out

    return run


def number(told, pattern) -> float:
    return float(re.search(pattern, told)[1].replace(",", ""))


@pytest.mark.parametrize("kind", ["vae", "flow", "glide"])
def test_a_dry_run_says_what_training_takes_and_leaves_nothing(kind, tmp_path, dry):
    place = workplace(kind, tmp_path)
    told = dry(place, lr_schedule="plateau", eval_steps=5)
    # Its checkpoint is that of a training.
    playing = {"disc_start": 0} if kind == "vae" else {}
    folder = place.train("real", 2, **OPTIONS | playing)
    size = (folder / "checkpoint-2.ckpt").stat().st_size / 1e9
    assert number(told, r"checkpoint: ([\d.]+) GB") == pytest.approx(size, rel=0.05, abs=4e-4)
    weights = load(folder, 2)["state_dict"]["gen_model"]
    num_weights = sum(value.numel() for value in weights.values())
    assert f": {num_weights:,} parameters" in told
    # Rates on the GPUs are 25 % of their peaks over an update's arithmetic.
    flops = number(told, r"arithmetic: ([\d.]+) GFLOP") * 1e9
    rows = [line.split("|")[1:-1] for line in told.splitlines() if "| yes |" in line]
    assert len(rows) == len(GPU_MEMORY)
    for name, _, _, rate, _ in rows:
        expected = 0.25 * peak_flops(name.strip(), "fp32") / flops
        assert float(rate.replace(",", "")) == pytest.approx(expected, rel=0.01, abs=0.5)


@pytest.mark.parametrize("kind", ["vae", "flow", "glide"])
def test_memory_of_shapes_alone_is_that_of_tensors(kind, tmp_path, dry, monkeypatch):
    class Tensors(contextlib.nullcontext):
        from_tensor = staticmethod(lambda tensor: tensor)

        def __enter__(self):
            return self

    taken = []
    memory = dry_run._memory
    monkeypatch.setattr(dry_run, "_memory", lambda *a: taken.append(memory(*a)) or taken[-1])
    place = workplace(kind, tmp_path)
    dry(place)
    monkeypatch.setattr(dry_run, "FakeTensorMode", lambda **_: Tensors())
    dry(place)
    shapes, tensors = taken
    assert shapes["activations"] == pytest.approx(tensors["activations"], rel=0.1)
    assert shapes["weights"] == pytest.approx(tensors["weights"], rel=0.02)
    assert shapes["optimizer"] == 2 * shapes["gradients"]
    assert shapes["averages"] <= shapes["weights"]
    assert all(value > 0 for value in shapes.values())


def test_several_gpus_share_the_samples_and_one_process_speaks(tmp_path, dry, monkeypatch):
    place = workplace("flow", tmp_path)
    rates = []
    for count in ("1", "4"):
        monkeypatch.setenv("WORLD_SIZE", count)
        told = dry(place, **{"for": "h100"})
        assert f"10 steps of {4 * int(count)} images" in told
        rates.append(number(told, r"H100 \| 80 \| yes \| ([\d,]+)"))
    assert rates[1] == pytest.approx(4 * rates[0], rel=0.01)
    monkeypatch.setenv("RANK", "1")
    assert dry(place) == ""


@pytest.mark.parametrize(
    "words, advice",
    [
        ("--pipeline some.yaml --dry_run", "nothing: --validate_pipeline prints the plan"),
        ("--task flow --dataset shapes --for h100", "--for names GPUs of a dry run: add --dry_run"),
    ],
)
def test_a_pipeline_has_a_plan_instead_and_a_training_no_gpus(capsys, words, advice):
    with pytest.raises(SystemExit):
        main(words.split())
    assert advice in capsys.readouterr().err
