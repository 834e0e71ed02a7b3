import multiprocessing
import random
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch

from tests.dataset.conftest import draw
from tests.dataset.reading import read_by
from tests.refusals import refused
from wfimagevae.dataset import (
    NoReadableImage,
    TrainImageDataset,
    TrainLoader,
    ValidImageDataset,
    valid_loader,
)


def images(batches):
    return torch.cat([batch["image"] for batch in batches])


def positions(batches):
    return [position for batch in batches for position in batch["position"]]


def wait_for_no_children(seconds):
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def test_batches_have_the_public_form_whatever_the_workers(noise_folder):
    dataset = TrainImageDataset(noise_folder(5), resolution=8)
    (batch,) = draw(TrainLoader(dataset, batch_size=3, options=read_by(0)))
    assert set(batch) == {"image", "position", "unreadable"}
    assert batch["image"].shape == (3, 3, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["position"] == [0, 1, 2] and batch["unreadable"] == []
    assert torch.equal(batch["image"], torch.stack([dataset[i]["image"] for i in range(3)]))
    none, two = (draw(TrainLoader(dataset, batch_size=3, options=read_by(n)), 7) for n in (0, 2))
    assert torch.equal(images(none), images(two))
    assert positions(none) == positions(two) == list(range(21))  # 5 per epoch: batches straddle


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_goes_on_at_the_exact_sample(noise_folder, num_workers):
    folder = noise_folder(5)
    whole = draw(TrainLoader(TrainImageDataset(folder, 8), 3, read_by(0)), 6)
    first = TrainLoader(TrainImageDataset(folder, 8), 3, read_by(num_workers))
    before = list(islice(first, 2))
    state = first.state_dict()
    first.close()
    assert state == {"position": 6, "seed": 1234, "num_images": 5}  # whatever was prefetched
    second = TrainLoader(TrainImageDataset(folder, 8), 3, read_by(num_workers))
    second.load_state_dict(state)
    after = draw(second, 4)
    assert torch.equal(images(before + after), images(whole))
    assert positions(after) == list(range(6, 18))


def test_number_of_ranks_may_change_on_resume(noise_folder):
    dataset = TrainImageDataset(noise_folder(7), resolution=8)
    ranks = [TrainLoader(dataset, 2, rank=r, world_size=2, options=read_by(0)) for r in range(2)]
    seen = [next(loader) for _ in range(3) for loader in ranks]
    states = [loader.state_dict() for loader in ranks]
    assert states[0] == states[1]
    alone = TrainLoader(dataset, 3, read_by(0))
    alone.load_state_dict(states[0])
    seen += draw(alone, 2)
    three = [TrainLoader(dataset, 1, rank=r, world_size=3, options=read_by(0)) for r in range(3)]
    for loader in three:
        loader.load_state_dict(alone.state_dict())
    seen += [next(loader) for _ in range(2) for loader in three]
    assert positions(seen) == list(range(24))
    assert torch.equal(images(seen), images(draw(TrainLoader(dataset, 24, read_by(0)), 1)))


def test_loading_a_state_restarts_a_running_loader(noise_folder):
    loader = TrainLoader(TrainImageDataset(noise_folder(5), 8), 2, read_by(1))
    state, first = loader.state_dict(), next(loader)
    loader.load_state_dict(state)
    assert torch.equal(draw(loader, 1)[0]["image"], first["image"])


def test_another_seed_is_an_error_and_another_count_a_warning(noise_folder, caplog):
    loader = TrainLoader(TrainImageDataset(noise_folder(3), 8), 1, read_by(0))
    refused("pass --seed 7", loader.load_state_dict, {"position": 4, "seed": 7, "num_images": 3})
    loader.load_state_dict({"position": 4, "seed": 1234, "num_images": 9})
    assert "had 9 images, now there are 3" in caplog.text
    assert next(loader)["position"] == [4]


def test_global_random_states_are_left_alone(noise_folder):
    dataset = TrainImageDataset(noise_folder(4), resolution=8)
    valid = ValidImageDataset(dataset.images.root, resolution=8)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for num_workers in (0, 1):
        draw(TrainLoader(dataset, 2, read_by(num_workers)), 3)
        list(valid_loader(valid, 2, num_workers=num_workers))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_each_unreadable_file_is_warned_of_and_passed_on_once(noise_folder, caplog):
    folder = noise_folder(6)
    for name in ("01.png", "04.png"):
        (folder / name).write_bytes(b"")
    loader = TrainLoader(TrainImageDataset(folder, 8), batch_size=3, options=read_by(2))
    batches = draw(loader, 12)
    told = [path for batch in batches for path, _ in batch["unreadable"]]
    assert sorted(told) == [str(folder / "01.png"), str(folder / "04.png")]
    assert loader.num_unreadable == 2
    assert all(len(batch["image"]) == 3 for batch in batches)
    assert [r.levelname for r in caplog.records if r.levelname != "INFO"] == ["WARNING"] * 2
    assert all(caplog.text.count(path) == 1 for path in told)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_readable_stops_with_one_line(noise_folder, num_workers):
    loader = TrainLoader(TrainImageDataset(noise_folder(3), 99), 2, read_by(num_workers))
    refused(r"^none of 3 images.*\Z", next, loader, error=NoReadableImage)  # one line
    assert loader.state_dict()["position"] == 0
    assert wait_for_no_children(5)


def test_close_stops_the_workers_and_the_stream_can_go_on(noise_folder):
    loader = TrainLoader(TrainImageDataset(noise_folder(4), 8), 2, read_by(2))
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert wait_for_no_children(5)
    assert next(loader)["position"] == [2, 3]
    loader.close()


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_workers_outlive_a_signal_to_the_whole_job(noise_folder, signal):
    loader = TrainLoader(TrainImageDataset(noise_folder(4), 8), 2, read_by(2))
    list(islice(loader, 2))  # both workers have begun
    workers = [str(child.pid) for child in multiprocessing.active_children()]
    subprocess.run(["kill", f"-{signal}", *workers], check=True)
    time.sleep(0.2)
    assert positions(draw(loader, 12)) == list(range(4, 28))
    assert wait_for_no_children(5)


def test_process_that_fails_with_workers_running_ends_at_once(noise_folder):
    code = (
        "from tests.dataset.reading import read_by\n"
        "from wfimagevae.dataset import TrainImageDataset, TrainLoader\n"
        f"loader = TrainLoader(TrainImageDataset({str(noise_folder(3))!r}, 8), 2, read_by(2))\n"
        "next(loader)\n"
        "raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_process_may_exit_while_a_batch_is_read(noise_folder, num_workers):
    # A thread inside of PyTorch then would end it by SIGABRT.
    code = (
        "import torch\n"
        "from tests.dataset.reading import read_by\n"
        "from wfimagevae.dataset import TrainImageDataset, TrainLoader\n"
        "class Slow(TrainImageDataset):\n"
        "    def read_batch(self, positions):\n"
        "        for _ in range(10):\n"
        "            torch.randn(800, 800) @ torch.randn(800, 800)\n"
        "        return super().read_batch(positions)\n"
        f"loader = TrainLoader(Slow({str(noise_folder(3))!r}, 8), 2, read_by({num_workers}))\n"
        "next(loader)\n"
        "loader.ready(3, 0.01)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_process_may_exit_while_what_workers_read_is_handed_over():
    code = (
        "import itertools, time, torch\n"
        "from wfimagevae.dataset.loader import Batches\n"
        "torch.multiprocessing.set_sharing_strategy('file_system')  # files of many tensors\n"
        "def read(numbers):\n"
        "    return {f'x{i}': torch.ones(64) for i in range(300)}\n"
        "batches = Batches(read, lambda n: ([i] for i in itertools.count(n)), 2)\n"
        "next(batches)\n"
        "time.sleep(0.05)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert run.returncode == 0


def test_images_of_native_size_come_one_by_one(noise_folder):
    native = ValidImageDataset(noise_folder(1))
    assert next(valid_loader(native, 1))["image"].shape == (1, 3, 16, 20)


@pytest.mark.gpu
def test_images_arrive_on_the_gpu_as_they_do_on_the_cpu(noise_folder):
    dataset = TrainImageDataset(noise_folder(4), resolution=8)
    (cpu,) = draw(TrainLoader(dataset, 4, read_by(1)))
    (gpu,) = draw(TrainLoader(dataset, 4, read_by(1), device="cuda"))
    assert gpu["image"].device.type == "cuda"
    assert gpu["image"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gpu["image"].cpu(), cpu["image"])


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (2, 1), (9, 0)])
def test_validation_shares_cover_every_image_once(flat_folder, world_size, num_workers):
    dataset = ValidImageDataset(flat_folder(7), resolution=8)
    shares = [
        [p for b in valid_loader(dataset, 2, num_workers, rank, world_size) for p in b["path"]]
        for rank in range(world_size)
    ]
    assert shares[0] == dataset.paths[::world_size]
    assert sorted(path for share in shares for path in share) == dataset.paths
