"""The parts of flow training, each built from its options."""

from pathlib import Path

import torch
from torch import nn

from wfimagevae.dataset.protocol import FlowData
from wfimagevae.diffusion.sampler import get_sampler
from wfimagevae.diffusion.timesteps import TimeDistribution
from wfimagevae.engine.cost import count_macs, count_parameters, shapes_only
from wfimagevae.engine.distributed import World
from wfimagevae.engine.report.tracker import Tracker
from wfimagevae.files import read_json
from wfimagevae.generate.generator import FlowGenerator
from wfimagevae.generate.options import SamplingOptions
from wfimagevae.model.flow.velocity_model import VelocityModel, build_velocity_model
from wfimagevae.objective.flow_matching import FlowMatching, FlowRules
from wfimagevae.objective.mean_flow import MeanFlow, MeanFlowRules, TargetGuidance
from wfimagevae.task.flow_data import FlowSpace
from wfimagevae.task.flow_text import picture_subjects, warn_of_another_encoder
from wfimagevae.task.flow_validation import FlowValidator, SampleRules


def build_network(options: dict, space: FlowSpace, device: torch.device) -> nn.Module:
    """The velocity network on its device, for the data's shape and classes.

    Raises:
        ValueError: a name, configuration or weights that do not fit the data.
    """
    name, pretrained = options["model_name"], options["pretrained_model_name_or_path"]
    config = options["model_config"]
    if config and not Path(config).is_file():
        raise ValueError(f"--model_config {config}: no such file")
    keys = read_json(config) if config else {}
    keys.pop("_class_name", None)
    keys |= _keys_of(space, options["text_attention"])
    keys["average_velocity"] = options["objective"] == "mean_flow"
    if pretrained:
        warn_of_another_encoder(pretrained, space.text)
        network = VelocityModel.from_pretrained(
            pretrained,
            model_name=name,
            overrides=keys,
            ignore_mismatched_sizes=options["ignore_mismatched_sizes"],
        )
        if network.prediction == "epsilon":  # a public DiT starts well, but predicts noise
            network.register_to_config(prediction="velocity")
    else:
        network = _fresh(name, keys)
    if network.takes_text and space.text is None:
        raise ValueError(
            "this network takes text: give --text_encoder, or a config without text_encoder"
        )
    if network.sample_shape != space.shape:
        raise ValueError(
            f"{name} takes samples of {network.sample_shape}, the data has {space.shape}"
        )
    if options["gradient_checkpointing"]:
        network.enable_gradient_checkpointing()
    return network.to(device).train()


def _fresh(name: str, keys: dict) -> VelocityModel:
    try:
        return build_velocity_model(name, **keys)
    except TypeError as error:  # a key that this network does not have
        hint = "; of our networks FlowTransformer and its presets (FlowDiT-S/2, ...) take text"
        raise ValueError(
            f"--model_name {name} does not suit this data or config: {error}"
            + (hint if "'text_" in str(error) else "")
        ) from None


def _keys_of(space: FlowSpace, text_attention: str | None) -> dict:
    """Configuration keys that data and text encoder decide."""
    keys = {"num_classes": space.num_classes}
    if space.text is not None:
        keys |= space.text.config_keys
        keys |= {"text_attention": text_attention} if text_attention else {}
    if len(space.shape) == 1:
        return keys | {"num_dims": space.shape[0]}
    return keys | {"in_channels": space.shape[0], "input_size": space.shape[1]}


def build_objective(options: dict, network: nn.Module, space: FlowSpace) -> FlowMatching:
    """Flow matching or MeanFlow, as the flags say.

    Raises:
        ValueError: terms that contradict each other, or what this PyTorch cannot do.
    """
    times = TimeDistribution(
        options["time_distribution"],
        options["time_mean"],
        options["time_std"],
        options["time_shift"],
    )
    rules = FlowRules(
        options["seed"], times, options["cfg_dropout_prob"], options["direction_weight"]
    )
    guidance = TargetGuidance(
        options["meanflow_omega"],
        options["meanflow_kappa"],
        tuple(options["meanflow_window"]),
    )
    _check_terms(options, guidance)
    if options["objective"] == "flow_matching":
        objective = FlowMatching(network, space.encode, rules, space.condition)
    else:
        particular = MeanFlowRules(
            options["meanflow_ratio"],
            options["meanflow_power"],
            options["meanflow_const"],
            guidance,
            options["meanflow_improved"],
        )
        objective = MeanFlow(network, space.encode, rules, particular, space.condition)
    if options["compile"]:
        objective.compile(options["compile_mode"])
    return objective


def _check_terms(options: dict, guidance: TargetGuidance) -> None:
    if options["objective"] == "flow_matching":
        if guidance.is_on:
            raise ValueError(
                "--meanflow_omega and --meanflow_kappa are guidance in the target of "
                "--objective mean_flow only"
            )
        return
    if options["direction_weight"]:
        raise ValueError("--direction_weight is a term of --objective flow_matching only")
    if guidance.is_on and not options["cfg_dropout_prob"]:
        raise ValueError(
            "guidance in the target needs --cfg_dropout_prob above 0: without dropped "
            "conditions the null condition is never learned"
        )
    if options["fsdp"] and options["compile"] and torch.__version__ < (2, 15):
        raise ValueError(
            "--fsdp --compile with --objective mean_flow needs torch 2.15, this is "
            f"{torch.__version__}: leave out --compile"
        )


def build_generator(
    options: dict, objective: FlowMatching, space: FlowSpace, device: torch.device
) -> FlowGenerator:
    """What draws samples from the network in training."""
    facts = space.facts | objective_facts(options)
    downsampling = options["resolution"] // space.shape[-1] if facts["space"] == "latent" else 1
    network, decode = objective.network, space.decode
    return FlowGenerator(
        network, device, facts, decode, space.text, downsampling, options["mix_precision"]
    )


def sampling_options(options: dict) -> SamplingOptions:
    """How samples are drawn while training."""
    return SamplingOptions(
        sampler=options["sampler"],
        steps=options["sampling_steps"],
        guidance_scale=options["guidance_scale"],
        seed=options["seed"],
    )


def build_validator(
    options: dict,
    here: World,
    folder: Path,
    objective: FlowMatching,
    generator: FlowGenerator,
    held_out: FlowData | None,
    tracker: Tracker,
) -> FlowValidator | None:
    """What evaluates the flow while it trains; None without validation.

    Raises:
        ValueError: a sampler or guidance that this model cannot follow, or too few samples.
    """
    if held_out is None or not options["eval_steps"]:
        return None
    sampling = sampling_options(options)
    generator.resolve(sampling)
    if options["fsdp"] and not get_sampler(sampling.sampler).evaluations:
        raise ValueError(
            f"--sampler {sampling.sampler} calls the network as often as each sample needs, a "
            "sharded one (--fsdp) is called by all processes alike: validate with heun or euler"
        )
    num_samples = min(options["eval_num_samples"], len(held_out))
    if num_samples < 2:
        raise ValueError(
            "validation compares at least 2 samples with held-out data: raise --eval_num_samples "
            f"{options['eval_num_samples']}, or give more than {len(held_out)} held-out sample(s)"
        )
    rules = SampleRules(
        folder,
        sampling,
        num_samples,
        options["eval_num_images"],
        options["eval_batch_size"],
        tuple(picture_subjects(options, held_out, generator.model.num_classes)),
    )

    def read(positions: list[int]) -> dict:
        batch = held_out.read_batch(positions)
        return held_out.to_inputs(batch, here.device) | {"position": positions}

    return FlowValidator(objective, generator, read, here, rules, tracker)


def objective_facts(options: dict) -> dict:
    """What generating needs to know of the objective."""
    facts = {name: options[name] for name in ("objective", "cfg_dropout_prob")}
    if options["objective"] == "mean_flow":
        facts["target_guidance"] = options["meanflow_omega"] / (1 - options["meanflow_kappa"])
    return facts


def update_flops(objective: FlowMatching, options: dict) -> float:
    """Arithmetic of one update for one sample, in FLOP: forward once, backward twice.

    MeanFlow's forward-mode pass counts as two forward passes of the share that makes it; the
    network's own velocity, which improved MeanFlow follows, is one more.
    """
    macs = sample_macs(objective.network)
    passes = 3.0
    if options["objective"] == "mean_flow":
        passes += (3 if options["meanflow_improved"] else 2) * options["meanflow_ratio"]
        passes += 2 if objective.mean_flow.guidance.is_on else 0
    return 2.0 * passes * macs


def sample_macs(network: nn.Module) -> int:
    """Multiply-accumulates of a forward pass for one sample."""
    device = next(network.parameters()).device
    with shapes_only():
        x = torch.empty(1, *network.sample_shape, device=device)
        t = torch.empty(1, device=device)
        return count_macs(lambda: network(x, t, network.null_condition(1, device)))


def describe(options: dict, network: nn.Module, space: FlowSpace) -> list[str]:
    """What a flow's training is about to do, in a few lines."""
    shape = " x ".join(map(str, space.shape))
    classes = f"{network.num_classes} classes" if network.num_classes else "no classes"
    if space.text is not None:
        text = space.text.facts
        classes += f"; text by {text['kind']}" + (f":{text['source']}" if text["source"] else "")
        classes += f", length {text['length']}"
    return [
        f"{options['model_name']}: {count_parameters(network):,} parameters, "
        f"{sample_macs(network) / 1e9:.3g} GMAC a sample of {shape}; {classes}",
        f"{options['objective']} on {options['dataset']}"
        + (f", average of the weights {options['ema_decay']}" if options["ema"] else ""),
    ]
