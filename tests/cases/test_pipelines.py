"""Pipeline files as users of FluxFlow write them, and what such a file must not do silently."""

import json
import re

import pytest
import torch

from tests.images import write_images
from tests.pipeline.files import (
    PLAIN,
    TINY_VAE,
    PipelinePlace,
    last_checkpoint,
    problems,
    with_step,
)
from wfimagevae.command_line import Parser
from wfimagevae.options import nearest
from wfimagevae.pipeline.checks import load_pipeline
from wfimagevae.pipeline.plan import describe_plan
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.vae import build_vae
from wfimagevae.task.vae_options import VaeOptions


@pytest.fixture
def load(tmp_path):
    def load(text: str):
        path = tmp_path / "file.yaml"
        path.write_text(text)
        return load_pipeline(path)

    return load


# Like danny-mio/fluxflow-training's config.cfg.example.yaml, and what is said of it.
FLUXFLOW = """\
model:
  vae_dim: 128                  # vae_dim, feature_maps_dim, text_embedding_dim mean nothing .*
  feature_maps_dim: 128
  text_embedding_dim: 1024
  pretrained_bert_model: null
data:
  data_path: IMAGES
  captions_file: CAPTIONS     # captions_file, cfg_dropout_prob, sample_captions: .*text_encoder
  img_size: 32
  tokenizer_name: "bert"        # data.tokenizer_name means nothing here: leave out
training:
  preserve_lr: true
  pipeline:
    steps:
      - {name: plain, n_epochs: 1, train_vae: true, train_spade: false}
      - {name: spade, n_epochs: 1, train_vae: true, train_spade: true}
      - name: flow
        n_epochs: 1
        train_diff: true
        train_spade: false
        cfg_dropout_prob: 0.10
output:
  sample_captions: ["a sunset"]
  sample_sizes: [32, 64]
  log_level: "INFO"
  log_file: training.log        # log_file means nothing here: leave out
model_checkpoint: null
"""


def test_a_file_of_fluxflow_is_right_once_its_messages_are_obeyed(load, tmp_path):
    """danny-mio/fluxflow-training config.cfg.example.yaml: one message an edit."""
    captions = tmp_path / "captions.txt"
    captions.write_text("000.png\ta cloud\n001.png\ta fox\n")
    images = write_images(tmp_path / "images", 2)
    text = FLUXFLOW.replace("IMAGES", str(images)).replace("CAPTIONS", str(captions))
    told = {n: line.split("# ")[1] for n, line in enumerate(text.splitlines(), 1) if "# " in line}
    found = problems(load, text)
    assert found.keys() == told.keys() and all(len(lines) == 1 for lines in found.values())
    assert all(re.search(message, found[line][0]) for line, message in told.items()), found
    gone = re.compile(r"\s+(vae_dim|feature_maps_dim|text_embedding_dim|tokenizer_name|log_file):")
    kept = [line.split(" #")[0] for line in text.splitlines() if not gone.match(line)]
    path = tmp_path / "obeyed.yaml"
    path.write_text("\n".join([kept[0], "  text_encoder: bytes", *kept[1:]]))
    assert "decoder 25,774,500" in (plan := "\n".join(describe_plan(load_pipeline(path))))
    assert "decoder 32,948,772" in plan  # the step with SPADE
    assert "frozen the decoder's SPADE" not in plan  # a flow has none


BOTH = "model: {text_encoder: bytes, vae: {pretrained: someone/vae}}\n"
CFG, CACHED = "cfg_dropout_prob: 0\n        ", "cache_latents: true\n        "


@pytest.mark.parametrize(
    ("before", "step", "message"),
    [
        # hpcaitech/Open-Sora, huggingface/diffusers: guidance of a model that has none.
        ("", "options: {guidance_scale: 3}", "options.guidance_scale 3 .*give model.text_encoder"),
        (BOTH, f"{CFG}options: {{guidance_scale: 3}}", "needs cfg_dropout_prob above 0"),
        ("", "options: {objective: mean_flow, meanflow_omega: 2}", "meanflow_omega or"),
        ("", "options: {sampler: mean_flow}", "options.sampler mean_flow is for options.objective"),
        # danny-mio/fluxflow-training: captions or dropout, and nothing that reads texts.
        ("", "cfg_dropout_prob: 0.1", "cfg_dropout_prob: no effect without.*give model.text_enc"),
        # kohya-ss/sd-scripts #1826: buckets with cached latents.
        (BOTH, f"{CACHED}options: {{aspect_buckets: 8}}", "honour aspect_buckets"),
        (BOTH, f"{CACHED}options: {{min_image_size: 9}}", "honour min_image_size"),
        (BOTH, f"{CACHED}options: {{train_crop: resized}}", "honour train_crop"),
        # Keys of other places and other repositories.
        ("output: {checkpoint_dir: x}\n", "lr: 1", "checkpoint_dir means nothing .*output_path"),
        ("model:\nvae_dim: 32\n", "lr: 1", "unknown key vae_dim: it belongs below model, indented"),
        ("", "use_cfg: true", "write cfg_dropout_prob, .*guidance_scale: W"),
        ("", "guidance_scale: 3", r"write options: \{guidance_scale: ...\}"),
        ("output: {output_path: 's3://b'}\n", "lr: 1", "output_path s3://b is a URL"),
        ("model: {vae: {pretrained: 's3://b/w'}}\n", "lr: 1", "copy it to this machine"),
    ],
)
def test_what_would_be_passed_over_or_fail_late_is_refused(load, before, step, message):
    found = problems(load, with_step(step, before, "train_diff: true"))
    told = [line for lines in found.values() for line in lines]
    assert len(told) == 1 and re.search(message, told[0]), found
    assert "--" not in told[0]


def test_a_scheme_that_is_not_read_is_told_with_what_to_write(load):
    """webdataset/webdataset: gopen has no s3."""
    (told,) = problems(load, PLAIN.replace("data_path: .", "data_path: 's3://b/x.tar'"))[1]
    assert "write pipe:aws s3 cp s3://b/x.tar - for a shard" in told


def test_flags_of_fluxflow_lead_to_ours():
    """danny-mio/fluxflow-training: fluxflow-generate --use_cfg."""
    assert nearest("use_cfg", Parser(FlowOptions).flags(), "--") == "; write --guidance_scale"
    FlowOptions(guidance_scale=3)  # beside a file, which may have the text


def test_spade_is_switched_on_by_a_later_step(tmp_path):
    """danny-mio/fluxflow-training PIPELINE_ARCHITECTURE: train_spade false, then true."""
    place = PipelinePlace(tmp_path)
    content = place.content("spade")
    names = ("fixed", "learns", "kept")
    steps = [{"name": name, "steps": 1, "train_vae": True} for name in names]
    for step in steps:
        step["train_spade"] = step["name"] == "learns"
    # As FluxFlow's users go about it: first one step, then the next; sizes as they write them.
    content["training"]["pipeline"]["steps"] = steps[:1]
    content["output"]["no_samples"] = True
    content["data"]["reduced_min_sizes"] = [16, 64]  # of images of 32 px
    place.run(content)
    content["training"]["pipeline"]["steps"] = steps
    assert place.plan(content).count("frozen the decoder's SPADE layers") == 1  # of the last one
    output = place.run(content)
    found = [last_checkpoint(output, name) for name in names]
    fixed, learns, kept = (one["state_dict"]["gen_model"] for one in found)
    modulation = [name for name in learns if ".spade" in name]
    assert modulation and not fixed.keys() & set(modulation)
    assert learns["decoder.spade_out.conv_out.weight"].any()
    assert all(torch.equal(learns[name], kept[name]) == (name in modulation) for name in learns)
    assert found[1]["ema_state_dict"].keys() == learns.keys()


def test_an_identity_is_held_where_a_configuration_has_spade(tmp_path):
    """danny-mio/fluxflow-training: train_spade: false."""
    path = tmp_path / "vae.json"
    path.write_text(json.dumps(TINY_VAE | {"spade": True}))
    options = VaeOptions(image_path=["."], model_config=path, resolution=32, train_spade=False)
    vae = build_vae(options, torch.device("cpu"))
    frozen = {name for name, value in vae.named_parameters() if not value.requires_grad}
    assert frozen == {name for name in vae.state_dict() if ".spade" in name} != set()
