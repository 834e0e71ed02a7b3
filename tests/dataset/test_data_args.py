import argparse
import subprocess
import sys

import pytest

from wfimagevae.dataset.args import add_data_args, add_eval_data_args


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_data_args(parser)
    add_eval_data_args(parser)
    return parser


def test_defaults_are_the_public_ones(parser):
    args = vars(parser.parse_args(["--image_path", "a", "--eval_image_path", "b"]))
    assert args == {
        "image_path": ["a"],
        "use_manifest": False,
        "resolution": 1024,
        "train_crop": "native",
        "dataset_num_worker": 8,
        "dataloader_prefetch_factor": 2,
        "disable_persistent_workers": False,
        "index_cache_dir": None,
        "data_weights": None,
        "wds_image_key": "png;jpg;jpeg;webp",
        "wds_caption_key": "txt",
        "wds_label_key": "cls",
        "wds_json_key": "json",
        "wds_shuffle_shards": 8,
        "wds_cache_dir": None,
        "wds_cache_gb": 0.0,
        "min_image_size": 0,
        "max_aspect_ratio": 0.0,
        "min_similarity": None,
        "skip_nsfw": False,
        "languages": [],
        "skip_words": "",
        "better_captions": None,
        "aspect_buckets": 0,
        "reduced_min_sizes": [],
        "eval_image_path": ["b"],
        "eval_resolution": 1024,
        "eval_crop_size": 1024,
        "eval_batch_size": 2,
        "eval_subset_size": 64,
        "eval_num_image_log": 8,
    }


def test_every_flag_is_explained(parser):
    assert all(action.help for action in parser._actions)


def test_flags_need_no_torch():
    code = "import sys, wfimagevae.dataset.args; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
