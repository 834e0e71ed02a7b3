"""Players and parts with options of their own, frozen parts, and weights of other runs."""

import pytest
import torch

from tests.task.training import FlowPlace, differences, load, rows

TEXT = {"text_encoder": "bytes", "text_length": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return FlowPlace(tmp_path_factory.mktemp("flow_parts"))


def test_a_discriminator_has_its_own_optimizer_and_schedule(workplace):
    own = ["optimizer=sgd", "lr=0.25", "lr_schedule=linear"]
    options = {"discriminator_options": own, "log_steps": 1, "csv_log_steps": 1}
    folder = workplace.train("critic", 4, disc_start=0, **options)
    kinds = {k: s["kind"] for k, s in load(folder, 4)["optimizer_state"].items()}
    assert kinds == {"gen_optimizer": "AdamW", "disc_optimizer": "SGD"}
    lines = rows(folder / "metrics.jsonl")
    rates = [(row["lr/generator"], row["lr/discriminator"]) for row in lines]
    assert rates == [(1e-3, 0.25 * (1 - i / 4)) for i in range(4)]


def test_a_frozen_discriminator_judges_and_does_not_learn(workplace):
    folder = workplace.train("judge", 3, disc_start=0, freeze_discriminator=True, save_ckpt_step=1)
    states = [load(folder, step)["state_dict"] for step in (1, 3)]
    assert not differences(states[0]["disc_model"], states[1]["disc_model"])
    assert differences(states[0]["gen_model"], states[1]["gen_model"])
    assert "train/g_loss" in rows(folder / "metrics.jsonl")[-1]


def test_a_text_encoder_learns_in_its_own_way(place):
    options = TEXT | {"text_encoder_options": ["optimizer=sgd", "lr=0.5", "momentum=0"]}
    folder = place.train("own", 2, **options, log_steps=1, csv_log_steps=1, save_ckpt_step=1)
    lines = rows(folder / "metrics.jsonl")
    assert [(row["lr/flow"], row["lr/text_encoder"]) for row in lines] == [(1e-3, 0.5)] * 2
    groups = load(folder, 2)["optimizer_state"]["gen_optimizer"]["param_groups"]
    network = load(folder, 2)["state_dict"]["gen_model"]
    inside = [name for name in network if name.startswith("text_encoder.")]
    assert len(groups[1]["params"]) == len(inside) and groups[1]["lr"] == 0.5


@pytest.mark.parametrize("frozen", ["freeze_text_encoder", "freeze_flow"])
def test_text_encoder_and_flow_can_be_trained_one_without_the_other(place, frozen):
    # A fresh network's output is zero whatever the text: train it a little first.
    before = place.train(f"before-{frozen}", 4, **TEXT) / "checkpoint-4.ckpt"
    folder = place.train(frozen, 1, **TEXT, **{frozen: True}, weights_from=str(before))
    states = [torch.load(before, weights_only=True), load(folder, 1)]
    states = [state["state_dict"]["gen_model"] for state in states]
    changed = {p.startswith("/text_encoder.") for p in differences(*states)}
    assert changed == {frozen == "freeze_flow"}


def test_parts_that_are_not_there_are_refused(place):
    with pytest.raises(ValueError, match="--freeze_flow: this network has no text encoder inside"):
        place.train("none", 1, freeze_flow=True)
    with pytest.raises(ValueError, match="no text encoder is trained here"):
        place.train("none", 1, text_encoder_options=["lr=0.1"])


def test_a_run_starts_from_the_weights_of_others(workplace, caplog):
    first = workplace.train("first", 3, disc_start=0, ema=True)
    second = workplace.train("second", 2, disc_weight=0, ema=True)
    paths = [second / "checkpoint-2.ckpt", first / "checkpoint-3.ckpt"]
    options = {"disc_start": 0, "ema": True, "lr": 1e-30}
    third = load(workplace.train("third", 1, weights_from=paths, **options), 1)
    state, critic = third["state_dict"], load(first, 3)["state_dict"]["disc_model"]
    assert not differences(state["gen_model"], load(second, 2)["state_dict"]["gen_model"])
    weights = [name for name in critic if "weight_orig" in name]
    assert all(torch.equal(state["disc_model"][n], critic[n]) for n in weights)
    assert third["player_state"]["generator"]["ema_updates"] == 3
    assert third["current_step"] == 1
    workplace.train("fourth", 1, disc_start=0, weights_from=paths[0])
    assert "the discriminator starts fresh" in caplog.text


def test_weights_of_another_network_are_refused(workplace):
    folder = workplace.train("deep", 1, disc_start=0)
    path = str(folder / "checkpoint-1.ckpt")
    with pytest.raises(ValueError, match=r"the discriminator of .* does not fit"):
        workplace.train("deeper", 1, disc_start=0, disc_num_layers=2, weights_from=path)


def test_an_epoch_can_be_shorter_than_the_data_and_a_value_can_end_the_run(workplace):
    state = load(workplace.train("short", None, epochs=3, max_steps_per_epoch=2), 6)
    assert state["finished"] and state["sampler_state"]["position"] == 12  # of 7 images
    early = {"stop_metric": "train/rec_loss_per_pixel", "stop_below": 9.0, "stop_window": 2}
    assert load(workplace.train("early", 20, **early), 4)["finished"]
