"""Sets of samples, and their comparison on one or several processes."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.eval.flow_models import BlobModel, GaussianFlow, WordModel, generator_of
from tests.refusals import refused
from wfimagevae.dataset import DataError
from wfimagevae.dataset.toy.points import PointDataset
from wfimagevae.engine.distributed import World
from wfimagevae.eval.evaluator import SetEvaluator
from wfimagevae.eval.features import load_inception
from wfimagevae.eval.options import SetMetricOptions
from wfimagevae.eval.sample_sets import DrawnSamples, FolderImages, GeneratedSamples, open_images
from wfimagevae.eval.set_metrics import energy_distance
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.generate.subjects import Subject

CPU = torch.device("cpu")


def evaluate(reference, samples=(), *metrics, batch_size=4, **options):
    """What an evaluator on one process measures of some sets."""
    options = SetMetricOptions(metric=metrics or ["energy_distance"], **options)
    evaluator = SetEvaluator(options, World(0, 1, CPU), reference, batch_size)
    return [evaluator.measure(entry) for entry in samples]


def pixels(count=8, size=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def all_of(samples, batch_size=3):
    numbers = range(len(samples))
    batches = [numbers[i : i + batch_size] for i in numbers[::batch_size]]
    return torch.cat(list(samples.read(batches)))


def test_a_folder_and_an_npz_of_the_same_images_are_one_set(tmp_path):
    images = pixels()
    write(tmp_path / "folder", images)
    np.savez(tmp_path / "samples.npz", images)
    np.savez_compressed(tmp_path / "small.npz", arr_1=np.arange(3), arr_0=images)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    for path in ("folder", "samples.npz", "small.npz"):
        samples = open_images(str(tmp_path / path))
        assert len(samples) == 8
        assert torch.equal(all_of(samples), expected)
        assert torch.equal(next(samples.read([[5, 2]])), expected[[5, 2]])
    # Every process opens the file: it holds no more of it than it is asked for.
    assert not any(isinstance(value, np.ndarray) for value in vars(samples).values())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_that_is_cut_while_it_is_read_is_an_error(tmp_path, save):
    save(tmp_path / "samples.npz", pixels(50, 64))
    samples = open_images(str(tmp_path / "samples.npz"))
    next(samples.read([[0, 1]]))
    with open(tmp_path / "samples.npz", "r+b") as file:
        file.truncate(100_000)
    refused("samples.npz was cut: image [1-9]", all_of, samples, error=DataError)


def test_an_npz_with_fewer_images_than_it_says_or_damaged_ones_is_an_error(tmp_path):
    path, file = tmp_path / "samples.npz", io.BytesIO()
    np.save(file, pixels(10, 64))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue()[: -5 * 64 * 64 * 3])
    refused("samples.npz was cut: image 5", all_of, open_images(str(path)), error=DataError)
    np.savez_compressed(path, pixels(10, 64))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    refused("samples.npz is damaged at image", all_of, open_images(str(path)), error=DataError)


def test_pictures_of_an_earlier_run_are_no_samples_of_the_last(tmp_path):
    write(tmp_path / "out", pixels())
    (tmp_path / "out-records").mkdir()
    for count in (8, 5):
        (tmp_path / "out-records" / "samples.json").write_text(f'{{"num_images": {count}}}')
        if count == 8:
            assert len(all_of(FolderImages(tmp_path / "out"))) == 8
    refused(r"holds 8 images, of which .* wrote 5", FolderImages, tmp_path / "out")
    Image.fromarray(pixels(1, 40)[0]).save(tmp_path / "out" / "grid.png")
    (tmp_path / "out-records" / "samples.json").unlink()
    refused(r"grid.png \(40x40\).*no sample", all_of, FolderImages(tmp_path / "out"), 20)


def test_a_file_that_is_no_npz_of_images_is_refused(tmp_path):
    path = tmp_path / "samples.npz"
    refused("no such file", open_images, str(path))
    path.write_text("nothing")
    refused("no images under 'arr_0'", open_images, str(path))
    for message, content in (
        ("must be uint8", {"arr_0": np.zeros((3, 4, 4, 3), np.float32)}),
        (r"got uint8 \(3, 3, 4, 4\)", {"arr_0": np.zeros((3, 3, 4, 4), np.uint8)}),
        ("in C order", {"arr_0": np.asfortranarray(np.zeros((3, 4, 5, 3), np.uint8))}),
        ("no images under 'arr_0'", {"other": np.zeros(3)}),
    ):
        np.savez(path, **content)
        refused(message, open_images, str(path))


def test_labels_are_balanced_or_random_and_follow_the_number():
    generator = generator_of(BlobModel())
    options = SamplingOptions(sampler="euler", steps=1, seed=3)
    balanced = GeneratedSamples(generator, options, 12)
    assert [subject.label for subject in balanced.subjects] == [0, 1, 2] * 4
    random = GeneratedSamples(generator, options, 600, "random").subjects
    counts = torch.tensor([subject.label for subject in random]).bincount().tolist()
    assert counts != [200] * 3 and min(counts) > 150
    assert GeneratedSamples(generator, options, 60, "random").subjects == random[:60]
    shown = [Subject(0, prompt=prompt) for prompt in ("a", "ccc")]
    prompted = GeneratedSamples(generator_of(WordModel()), options, 6, shown=shown)
    assert [subject.prompt for subject in prompted.subjects] == ["a", "ccc"] * 3
    images = next(prompted.read([[0, 1, 4]])).float()
    assert images.mean((2, 3)).argmax(1).tolist() == [0, 2, 0]
    # The blob's colour is its class: image 4 of twelve is of class 1, in any batch.
    image = next(balanced.read([[4]]))[0].float()
    assert image.mean((1, 2)).argmax() == 1


def test_points_of_a_flow_are_compared_with_fresh_ones():
    points = DrawnSamples(PointDataset("five_gaussians", split="test"), 1000, "five_gaussians")
    options = SamplingOptions(sampler="heun", steps=20)
    samples = GeneratedSamples(generator_of(GaussianFlow()), options, 1000)
    drawn = all_of(samples, 300)
    assert drawn.std(0) == pytest.approx(torch.tensor([0.5, 0.5]), abs=0.05)
    expected = energy_distance(all_of(points, 300), drawn)
    ((values, _, protocol),) = evaluate(points, [samples], batch_size=300)
    assert values == {"energy_distance": expected} and expected > 0.3
    assert protocol["size"] == "2-D"


def test_the_energy_distance_compares_a_part_of_the_samples(tmp_path):
    real = FolderImages(write(tmp_path / "a", pixels(20)))
    fake = FolderImages(write(tmp_path / "b", pixels(20, seed=1) // 2))
    (whole,) = evaluate(real, [fake])
    (part,) = evaluate(real, [fake], energy_samples=6)
    assert part[0] != whole[0] and part[2]["generated_count"] == 20
    assert part[2]["energy_distance"]["generated_samples"] == 6
    assert evaluate(real, [fake], batch_size=7, energy_samples=6) == [part]


def test_all_metrics_of_a_set_with_itself(tmp_path, inception_weights, monkeypatch):
    narrow = load_inception(CPU, str(inception_weights), 64)
    monkeypatch.setattr("wfimagevae.eval.evaluator.load_features", lambda *_: narrow)
    images = FolderImages(write(tmp_path, pixels()))
    metrics = ("fid", "kid", "precision_recall", "energy_distance")
    ((values, notes, protocol),) = evaluate(images, [images], *metrics)
    assert abs(values["fid"]) < 1e-6 and values["precision"] == values["recall"] == 1
    assert values["kid"] <= 0 and values["energy_distance"] < 0
    assert "8 samples are fewer than the 64 features" in notes["fid"]
    assert protocol["kid"]["subset_size"] == 8 and protocol["precision_recall"] == "k = 3"


def test_sets_that_are_too_small_or_unlike_are_refused_before_all_is_drawn(tmp_path):
    refused("reference: 3 samples are too few", evaluate, FolderImages(write(tmp_path, pixels(3))))
    real = FolderImages(write(tmp_path / "a", pixels(size=12)))
    fake = FolderImages(write(tmp_path / "b", pixels(size=16)))
    read, batches = [], fake.read
    fake.read = lambda *args: (read.append(1) or batch for batch in batches(*args))
    refused(
        "16x16, the reference's are 12x12; give --resolution", evaluate, real, [fake], batch_size=2
    )
    assert len(read) == 1  # before the rest is drawn
    ((values, _, _),) = evaluate(real, [FolderImages(tmp_path / "b", 12)])
    assert "energy_distance" in values


def test_a_folder_of_unlike_sizes_is_refused_and_unreadable_images_are_left_out(tmp_path):
    write(tmp_path, pixels(4))
    write(tmp_path / "z", pixels(4, size=16))
    refused("samples differ in size, 12x12 and 16x16", evaluate, FolderImages(tmp_path))
    real = FolderImages(write(tmp_path / "real", pixels(8)))
    for name in ("01.png", "04.png", "05.png"):  # one of a batch, and a whole one
        (tmp_path / "real" / name).write_bytes(b"\x89PNG nothing")
    fake = FolderImages(write(tmp_path / "fake", pixels(5, seed=1)))
    ((values, _, protocol),) = evaluate(real, [fake], batch_size=2)
    assert sorted(real.left_out) == [1, 4, 5] and protocol["real_left_out"] == 3
    assert (protocol["real_count"], protocol["energy_distance"]["real_samples"]) == (5, 5)
    for name in real.left_out:  # the figures are those without them
        (tmp_path / "real" / f"0{name}.png").unlink()
    assert evaluate(FolderImages(tmp_path / "real"), [fake])[0][0] == values
    for i in range(2):
        (tmp_path / "real" / f"0{2 + i}.png").write_bytes(b"")
    refused("reference: 3 samples are too few", evaluate, FolderImages(tmp_path / "real"))


def test_samples_that_are_not_finite_are_an_error():
    model = BlobModel()
    model.gain.data.fill_(torch.inf)
    samples = GeneratedSamples(generator_of(model), SamplingOptions(sampler="euler", steps=2), 4)
    refused("samples are not finite; try fp32", all_of, samples)
