"""Flow training end to end on the CPU: what it writes, how it resumes, what it refuses."""

import pytest
import torch
from torch_fidelity import metric_fid

from tests.images import write_images
from tests.task.training import differences, largest_difference, load, refused, rows
from wfimagevae.command_line import parse
from wfimagevae.diffusion.sampler import SAMPLERS as BUILT_SAMPLERS
from wfimagevae.engine.distributed import World
from wfimagevae.eval.features import load_inception
from wfimagevae.generate.generator_files import load_generator
from wfimagevae.generate.options import SAMPLERS, GeneratorOptions, SamplingOptions
from wfimagevae.pictures.pixels import to_uint8
from wfimagevae.task import flow
from wfimagevae.task.flow import build_generator, build_objective, check_same_data
from wfimagevae.task.flow_options import FlowOptions
from wfimagevae.task.flow_space import build_datasets
from wfimagevae.task.flow_validation import FlowValidator

CPU = torch.device("cpu")
MLP = {"model_name": "MLP", "model_config": None}
CIFAR = {"dataset": "cifar10", "data_path": "nowhere"}
OMEGA = {"objective": "mean_flow", "meanflow_omega": 2.0}
GUIDED = {"eval_steps": 1, "guidance_scale": 2.0}


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "flow_matching", "dataset_num_worker": 2, "direction_weight": 0.1},
        {"objective": "mean_flow", "grad_accum_steps": 2, "ema_decay": [0.9, 0.99]},
        {"objective": "mean_flow", "meanflow_omega": 1.5, "meanflow_improved": True}
        | {"mix_precision": "bf16"},
    ],
    ids=["flow_matching", "mean_flow", "guided_bf16"],
)
def test_resuming_equals_never_stopping_bit_for_bit(place, options):
    whole, parts = place.whole_and_parts(5, 3, **options)
    assert differences(load(whole, 5), load(parts, 5)) == []


@pytest.mark.parametrize("objective", ["flow_matching", "mean_flow"])
def test_two_ranks_train_as_one_process(place, objective):
    options = {"objective": objective, "optimizer": "sgd", "lr": 0.1, "clip_grad_norm": 1e3}
    one = load(place.train("one", 3, batch_size=8, **options), 3)
    two = load(place.torchrun("two", 3, batch_size=4, **options), 3)
    weights = [c["state_dict"]["gen_model"] for c in (one, two)]
    assert largest_difference(*weights) < 1e-5
    assert largest_difference(one["ema_state_dict"], two["ema_state_dict"]) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_of_mean_flow_gets_a_gradient(assemble, precision):
    """Passes without gradients come first; autocast must not keep their casts of the weights."""
    omega = {"objective": "mean_flow", "meanflow_omega": 2.0, "meanflow_ratio": 0.5}
    _, dataset, *_, objective = assemble(**omega)
    network = objective.network
    for parameter in network.parameters():  # zero at first, so that nothing flows through them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    batch = dataset.to_inputs(dataset.read_batch([0, 1, 2, 3]), CPU) | {"position": [0, 1, 2, 3]}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        objective(batch, 0)[0].backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_validation_writes_loss_distance_and_pictures(place):
    run = place.train("run", 2, objective="mean_flow", eval_steps=2)
    (row,) = rows(run / "validation.jsonl")
    distances = {"val_ema/energy_distance", "val_ema/energy_distance_one_step"}
    assert row.keys() == {"step", "val/error", "val_ema/error"} | distances
    pictures = sorted(p.name for p in (run / "val_samples").iterdir())
    assert pictures == ["step-00000002-heun.png", "step-00000002-one-step.png"]


def test_a_checkpoint_alone_generates(place):
    run = place.train("run", 2)
    generator = load_generator(str(run), CPU)
    assert generator.facts["space"] == "pixel"
    assert generator.facts["class_names"][0] == "circle"
    x = generator.sample([0, 5], torch.tensor([1, 2]), SamplingOptions(sampler="euler", steps=2))
    assert x.shape == (2, 3, 16, 16)
    raw = load_generator(GeneratorOptions(from_pretrained=str(run), use_raw_weights=True), CPU)
    assert largest_difference(raw.model.state_dict(), generator.model.state_dict()) > 0


def test_points_and_folders_of_images_train_too(place):
    run = place.train("points", 2, dataset="moons", **MLP, eval_steps=2)
    assert list((run / "val_samples").iterdir())
    for name in ("cat", "dog"):
        write_images(place.folder / "pets" / name, 3)
        write_images(place.folder / "held_out" / name, 2)
    data = {"data_path": place.folder / "pets", "eval_data_path": place.folder / "held_out"}
    data |= {"dataset": "images", "labels": "folder", "eval_num_samples": 4}
    run = place.train("pets", 2, eval_steps=2, **data)
    assert load(run, 2)["generator"]["class_names"] == ["cat", "dog"]


def test_a_pretrained_flow_starts_average_velocities_unchanged(place):
    first = place.train("first", 2)
    unchanged = {"pretrained_model_name_or_path": first, "lr": 1e-12, "ema_decay": 0.0}
    second = place.train("second", 1, objective="mean_flow", **unchanged)
    before, after = (load_generator(str(run), CPU).model for run in (first, second))
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.7]), torch.tensor([1, 8])
    torch.testing.assert_close(before(x, t, y), after(x, t, y, t_end=t + 0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_config": "nowhere.json"}, r"--model_config nowhere\.json: no such file"),
        ({"model_config": __file__}, r"test_flow_training\.py is not JSON"),
        ({"dataset": "images"}, "needs --data_path"),
        ({"dataset": "latents", "data_path": "nowhere", "eval_data_path": "x"}, "latents.json"),
        (CIFAR | {"resolution": None}, "cifar-10-batches-py"),
        (CIFAR, "--resolution 16: .* 32 px"),
        ({"model_name": "FlowDiT-Z/4"}, "unknown model 'FlowDiT-Z/4'"),
        ({"model_name": "WFVAE2Image", "model_config": None}, "is no velocity network"),
        (MLP, "does not suit this data"),
        ({"resolution": 18}, "18"),
        ({"eval_steps": 1, "sampler": "mean_flow"}, "--objective mean_flow"),
        ({"objective": "mean_flow", "meanflow_kappa": 1.0}, "kappa"),
        (
            OMEGA | {"no_class_conditional": True},
            "guides by a text or class, and this flow learns neither",
        ),
        (GUIDED | {"no_class_conditional": True}, "guides by a text or class, and this flow"),
        ({"objective": "mean_flow", "direction_weight": 0.1}, "--objective flow_matching only"),
        ({"meanflow_omega": 2.0}, "--objective mean_flow only"),
        ({"meanflow_kappa": 0.5}, "--objective mean_flow only"),
        (OMEGA | {"cfg_dropout_prob": 0.0}, "--cfg_dropout_prob above 0"),
        (GUIDED | {"cfg_dropout_prob": 0.0}, "--guidance_scale 2 needs --cfg_dropout_prob above 0"),
        ({"eval_steps": 1, "eval_num_samples": 1}, "--eval_num_samples 1"),
        ({"dataset": "moons", "vae": "WFVAE2Image:x"}, "encodes images, not points"),
        ({"time_mean": "nan"}, "'nan' is not a number"),
        ({"fsdp": True}, "--fsdp needs several processes: torchrun"),
        ({"fp8": True, "mix_precision": "bf16"}, "--fp8 needs a GPU that has it.*this is cpu"),
        ({"fp8": True, "objective": "mean_flow"}, "takes a forward derivative, and --fp8 has none"),
        ({"fsdp_checkpoints": True}, "say how to shard: add --fsdp"),
        ({"pretrained_model_name_or_path": "missing.ckpt"}, "missing.ckpt"),
    ],
)
def test_bad_options_are_explained_before_the_first_step(place, options, words):
    with refused(words):
        place.train("bad", 1, **options)


def test_a_checkpoint_of_another_model_is_refused(place):
    first = place.train("run", 1)
    with pytest.raises(ValueError, match=r"blocks\.2\.|of another shape|missing"):
        (place.folder / "tiny.json").write_text('{"hidden_size": 32, "depth": 3, "num_heads": 2}')
        place.train("run", 2, resume_from_checkpoint=first)


def test_a_run_of_other_data_is_not_resumed(place):
    options = MLP | {"no_class_conditional": True}
    place.train("run", 1, dataset="moons", **options)
    with pytest.raises(ValueError, match="data with another dataset"):
        place.go_on("run", 2, dataset="rings", **options)


@pytest.mark.parametrize("name", ["shift", "scale", "class_names", "VAE"])
def test_latents_of_another_kind_are_not_resumed(name):
    facts = {"space": "latent", "shift": [0.0], "scale": [1.0], "class_names": ["a", "b"]}
    facts["vae"] = {"source": "WFVAE2Image:here", "fingerprint": "1"}
    moved = facts | {"vae": {"source": "WFVAE2Image:there", "fingerprint": "1"}}
    check_same_data(moved, facts)
    other = {"vae": facts["vae"] | {"fingerprint": "2"}} if name == "VAE" else {name: [2.0]}
    with pytest.raises(ValueError, match=f"another {name}:"):
        check_same_data(facts | other, facts)


def test_validation_gives_the_fid_of_torch_fidelity(place, inception_weights, monkeypatch):
    narrow = load_inception(CPU, str(inception_weights), 64)
    monkeypatch.setattr("wfimagevae.task.flow_validation.load_inception", lambda *_: narrow)
    flags = {"eval_steps": 1, "eval_fid": True, "eval_batch_size": 3, "no_ema": True}
    run = place.train("run", 2, **flags)
    _, row = rows(run / "validation.jsonl")
    options = parse(FlowOptions, place.flags("run", 2, **flags))
    batch = build_datasets(options)[1].read_batch(list(range(8)))
    generator, sampling = load_generator(str(run), CPU), SamplingOptions(steps=2, seed=options.seed)
    samples = generator.images(generator.sample(list(range(8)), batch["label"], sampling))
    features = narrow(batch["pixels"].movedim(-1, 1)), narrow(to_uint8(samples))
    moments = [metric_fid.fid_features_to_statistics(each) for each in features]
    fid = metric_fid.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    assert row["val/fid"] == pytest.approx(fid, rel=1e-3)
    with pytest.raises(ValueError, match="--eval_fid is for images"):
        place.train("points", 1, **MLP, dataset="moons", **flags)


def test_an_adaptive_sampler_does_not_validate_a_sharded_network(assemble):
    options, _, held_out, space, objective = assemble(eval_steps=1, sampler="dopri5", fsdp=True)
    generator = build_generator(options, objective, space)
    with pytest.raises(ValueError, match="sharded"):
        FlowValidator(options, objective, generator, held_out, World(0, 1, CPU), None)


@pytest.mark.parametrize(("fsdp", "device"), [(None, "meta"), (True, "cpu")])
def test_a_network_is_sharded_before_it_goes_to_the_device(place, monkeypatch, fsdp, device):
    class Built(Exception):
        """There is nothing more to see."""

    def seen(options, network, space):
        raise Built({parameter.device.type for parameter in network.parameters()})

    monkeypatch.setattr(flow, "build_objective", seen)
    options = parse(FlowOptions, place.flags("x", 1, fsdp=fsdp))
    with pytest.raises(Built) as built:
        flow._assemble(options, World(0, 1, torch.device("meta")), None)
    assert built.value.args == ({device},)


def test_sharded_compiled_mean_flow_says_which_torch_it_needs(place, monkeypatch):
    flags = place.flags("x", 1, objective="mean_flow", fsdp=True, compile=True)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0"))
    with pytest.raises(ValueError, match=r"needs torch 2\.15, this is 2\.11\.0: leave out"):
        build_objective(parse(FlowOptions, flags), None, None)


def test_a_sharded_mean_flow_is_compiled_if_asked_for_alone(place, monkeypatch):
    decided = []
    monkeypatch.setattr(flow, "run_training", lambda options, *_: decided.append(options.compile))
    for flags in ({"fsdp": True}, {"fsdp": True, "compile": True}, {}):
        flow.train(parse(FlowOptions, place.flags("x", 1, objective="mean_flow", **flags)))
    assert decided == [False, True, None]


def test_flag_names_of_samplers_are_those_that_exist():
    assert set(SAMPLERS) == set(BUILT_SAMPLERS)
