import pytest
from PIL import Image

from scripts.make_webdataset import main as make_webdataset
from tests.images import smooth_image, write_captioned
from tests.task.training import FlowPlace, Workplace, differences, load

SHAPES = ((40, 40), (40, 80), (90, 40))


@pytest.fixture
def shards(tmp_path):
    """Shards of nine captioned images of three shapes in two classes."""
    folder = write_captioned(tmp_path / "photos", 9, lambda i: SHAPES[i % 3])
    words = ["--image_path", folder, "--output_dir", tmp_path / "shards", "--captions", "sidecar"]
    words += ["--labels", "folder", "--samples_per_shard", 4]
    assert make_webdataset([str(word) for word in words]) == 0
    return tmp_path / "shards"


def test_vae_trains_on_bucketed_shards_and_resumes_bit_for_bit(shards, tmp_path):
    place = Workplace(tmp_path)
    options = {"image_path": f"{shards}/shard-{{000000..000002}}.tar", "train_crop": "resized"}
    options |= {"eval_image_path": shards / "shard-000001.tar", "aspect_buckets": 16}
    options |= {"dataset_num_worker": 2, "eval_steps": 6, "eval_batch_size": 2}
    whole, parts = place.whole_and_parts(6, 3, **options)
    one, two = load(whole, 6), load(parts, 6)
    for part in ("state_dict", "optimizer_state", "sampler_state"):
        assert differences(one[part], two[part]) == []
    assert one["sampler_state"]["position"] == 12
    assert one["sampler_state"]["order"]["aspect_buckets"] == 16
    other = options | {"batch_size": 4, "resume_from_checkpoint": parts / "checkpoint-6.ckpt"}
    with pytest.raises(ValueError, match="batch_size was 2, is 4"):
        place.train("other", 8, **other)


FLOW = {"dataset": "images", "num_shapes": None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"aspect_buckets": 16, "disc_num_layers": 3},
            r"--resolution 32 with a bucket of 64 x 16 is too small for the discriminator, which "
            r"needs 24 px: raise it, or train with --disc_num_layers 2 or --disc_weight 0",
        ),
        ({"aspect_buckets": 12}, "crops of 48 x 12 px: make them multiples of 8"),
        ({"reduced_min_sizes": 20, "train_crop": "resized"}, "crops of 20 x 20 px: .* of 8"),
        (FLOW | {"aspect_buckets": 6}, "of 24 x 12 px|of 24 x 6 px"),
        (FLOW | {"model_name": "DiT-S/4", "aspect_buckets": 8}, "network takes 16 x 16 alone"),
        (
            FLOW | {"model_name": "SmallCNN", "model_config": None, "aspect_buckets": 8},
            "images of 32 x 8 px, this network takes 16 x 16 alone: leave them out",
        ),
    ],
)
def test_buckets_that_a_network_cannot_take_are_refused_before_training(tmp_path, options, words):
    (tmp_path / "shapes").mkdir()
    for width in (40, 800):
        Image.fromarray(smooth_image(40, width, 0)).save(tmp_path / "shapes" / f"{width}.png")
    place, flag = (FlowPlace, "data_path") if "dataset" in options else (Workplace, "image_path")
    with pytest.raises(ValueError, match=words):
        place(tmp_path).train("bad", 2, **{flag: tmp_path / "shapes"} | options)


def test_flow_with_text_trains_on_bucketed_shards_and_resumes(shards, tmp_path):
    place = FlowPlace(tmp_path)
    options = {"dataset": "images", "num_shapes": None, "data_path": shards, "labels": "folder"}
    options |= {"text_encoder": "bytes", "text_length": 16, "batch_size": 2}
    options |= {"aspect_buckets": 4, "reduced_min_sizes": [8]}
    whole, parts = place.whole_and_parts(6, 3, **options)
    one, two = load(whole, 6), load(parts, 6)
    assert differences(one["state_dict"], two["state_dict"]) == []
    assert one["sampler_state"] == two["sampler_state"]
    assert one["sampler_state"]["order"]["reduced_min_sizes"] == [8]
