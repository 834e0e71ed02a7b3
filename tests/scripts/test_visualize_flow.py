import pytest
from PIL import Image

from scripts import visualize_flow
from tests.refusals import refused
from tests.scripts.flow_exports import command, export_points


@pytest.fixture(scope="module")
def classed_points(tmp_path_factory):
    return export_points(tmp_path_factory.mktemp("points") / "flow", num_classes=2)


def visualize(flow, folder, *arguments):
    words = ("--from_pretrained", flow, "--output_dir", folder, "--device", "cpu")
    command(visualize_flow, *words, *arguments)
    return sorted(path.name for path in folder.iterdir())


def size_and_frames(path):
    with Image.open(path) as image:
        return image.size, getattr(image, "n_frames", 1)


def test_points_give_a_field_and_paths(classed_points, tmp_path):
    options = ("--dataset", "moons", "--steps", 3, "--num_frames", 5, "--num_particles", 20)
    names = visualize(classed_points, tmp_path / "pictures", *options, "--sampler", "euler")
    assert names == ["field.gif", "paths.gif"]
    assert size_and_frames(tmp_path / "pictures" / "field.gif")[1] == 5
    assert size_and_frames(tmp_path / "pictures" / "paths.gif")[1] == 4


def test_images_give_denoising_and_interpolation(pixels, tmp_path, capsys):
    options = ("--steps", 4, "--num_rows", 2, "--num_columns", 3, "--sampler", "heun")
    names = visualize(pixels, tmp_path / "pictures", *options, "--guidance_scale", 2)
    folder = tmp_path / "pictures"
    (width, height), _ = size_and_frames(folder / "denoising.png")
    assert height == 4 + 24 + 2 * 100 and width > 3 * 100 + 4
    assert size_and_frames(folder / "interpolation.png")[0][1] == 4 + 2 * 100
    assert size_and_frames(folder / "denoising.gif")[1] == 5
    assert size_and_frames(folder / "interpolation.gif")[1] == 4  # there and back
    told = ["denoising.png", "denoising.gif", "interpolation.png", "interpolation.gif"]
    assert names == sorted(told)
    assert capsys.readouterr().out.split() == [str(folder / name) for name in told]


def test_pictures_that_cannot_be_are_refused(classed_points, tmp_path):
    for arguments, message in (
        ("--pictures denoising", "no denoising of a flow of points"),
        ("", "give --dataset"),
        ("--dataset moons --class_labels 0 1", "one class"),
        ("--dataset moons --class_labels 7", "no class '7'"),
        ("--num_columns 1", "--num_columns 1: .* at least 2"),
    ):
        refused(message, visualize, classed_points, tmp_path, *arguments.split())
    assert list(tmp_path.iterdir()) == []
