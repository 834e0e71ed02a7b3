"""Flags of flow training. No torch here."""

from wfimagevae.dataset.args import add_loader_args
from wfimagevae.dataset.stream_args import add_stream_args
from wfimagevae.engine.args import (
    Parser,
    add_switch,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    probability,
)
from wfimagevae.engine.run_args import add_player_options, add_sharding_arg
from wfimagevae.generate.generation_args import POINT_SETS, SAMPLERS, prompt_text

DATASETS = ("images", "latents", "shapes", "cifar10", *POINT_SETS)


def add_args(parser: Parser) -> None:
    """Declares the flags of data, network, objective and validation."""
    add_data_group(parser)
    add_text_group(parser)
    add_model_group(parser)
    add_training_group(parser)
    add_objective_group(parser)
    add_mean_flow_group(parser)
    add_validation_group(parser)
    add_sharding_arg(parser.add_argument_group("sharding"))
    # What suits a VAE of photographs does not suit a flow.
    parser.set_defaults(
        exp_name="flow",
        batch_size=64,
        grad_accum_steps=1,
        lr=1e-4,
        weight_decay=0.0,
        clip_grad_norm=1.0,
        ema=True,
        ema_decay=[0.9999],
        save_ckpt_step=5000,
        log_steps=100,
        csv_log_steps=100,
        live_plot_every_steps=1000,
    )


def add_data_group(parser: Parser) -> None:
    """Declares what the flow learns to generate."""
    group = parser.add_argument_group("data", "what the flow learns to generate")
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        default="images",
        help="images: a folder or manifest; latents: what scripts/cache_latents.py wrote; shapes: "
        "coloured shapes drawn here, with classes; cifar10; the others: points in the plane",
    )
    group.add_argument(
        "--data_path",
        nargs="+",
        metavar="PATH",
        help="of images: folder, JSON-lines manifest or WebDataset shards, as for --image_path of "
        "the image VAE, or several; else the folder of cached latents, or the one that holds "
        "cifar-10-batches-py",
    )
    group.add_argument(
        "--eval_data_path",
        nargs="+",
        metavar="PATH",
        help="held-out data of the same kind; shapes, cifar10 and points bring their own",
    )
    group.add_argument(
        "--labels",
        choices=("none", "folder", "manifest"),
        default="none",
        help="classes of images: none, the first folder below --data_path, or the manifest's "
        "'label' field; of shards, either of these reads --wds_label_key",
    )
    add_switch(
        group, "--class_conditional", True, "condition on the classes, where the data has any"
    )
    group.add_argument(
        "--resolution",
        type=positive_int,
        metavar="PX",
        help="height and width of images and shapes, 32 if not given; latents are as they were "
        "cached, cifar10 has 32",
    )
    group.add_argument(
        "--train_crop",
        choices=("native", "resized", "center"),
        default="center",
        help="center: ADM's resize and centre crop; resized, native: random crops of the resized "
        "or the original image",
    )
    group.add_argument(
        "--num_shapes", type=positive_int, default=20_000, metavar="N", help="shapes in an epoch"
    )
    group.add_argument(
        "--vae",
        metavar="KIND:PATH",
        help="encode images while training: WFVAE2Image:PATH or diffusers:PATH_OR_NAME; for "
        "latents: another place of the autoencoder that made them",
    )
    add_loader_args(group, workers=4)
    add_stream_args(parser.add_argument_group("images at scale", "shards, filters, buckets"))


def _spec_or_none(text: str) -> str | None:
    return None if text == "none" else text


def add_text_group(parser: Parser) -> None:
    """Declares captions and the encoder that reads them."""
    group = parser.add_argument_group("text", "captions as a condition, beside classes or alone")
    group.add_argument(
        "--text_encoder",
        type=_spec_or_none,
        metavar="SPEC",
        help="bytes: a small transformer inside the network, which needs no download; or a frozen "
        "encoder of transformers: clip:, t5: or bert: and a folder or hub name; not given, or "
        "none: no text",
    )
    group.add_argument(
        "--text_length",
        type=positive_int,
        metavar="N",
        help="bytes or tokens of a caption, what is longer is cut (default: 128, or what the "
        "encoder takes if that is less)",
    )
    group.add_argument(
        "--text_attention",
        choices=("cross", "joint"),
        help="cross: image tokens attend to the text (the default, which leaves a pretrained model "
        "unchanged at first); joint: both attend to each other (MMDiT)",
    )
    group.add_argument(
        "--captions",
        default="none",
        metavar="SOURCE",
        help="of images: sidecar (a .txt beside each image; of several lines one at random), "
        "manifest (its field 'caption', a string or a list), or a file of lines name<TAB>caption; "
        "shapes and latents bring their own",
    )
    group.add_argument(
        "--fixed_prompt_prefix",
        default="",
        metavar="TEXT",
        help="set before every caption, with '. ' between them",
    )


def add_model_group(parser: Parser) -> None:
    """Declares the network."""
    group = parser.add_argument_group("model", "the velocity network")
    group.add_argument(
        "--model_name",
        default="FlowDiT-S/2",
        metavar="NAME",
        help="registered name: DiT-{S,B,L,XL}/{2,4,8}, FlowDiT-{S,B,L,XL}/{1,2,4,8}, UNet, "
        "SmallCNN, MLP; the data gives input size, channels and classes",
    )
    group.add_argument(
        "--model_config",
        metavar="FILE",
        help="JSON of the network's configuration keys; they win over the name's",
    )
    group.add_argument(
        "--pretrained_model_name_or_path",
        metavar="PATH",
        help="start from these weights: a .ckpt, an export, a hub name, or a public SiT or DiT "
        "file, whose size --model_name names",
    )
    group.add_argument(
        "--ignore_mismatched_sizes",
        action="store_true",
        help="pretrained weights of another shape start anew, with a warning",
    )


def add_training_group(parser: Parser) -> None:
    """Declares what of the network is trained, and how its parts differ."""
    group = parser.add_argument_group("parts", "of the network, where it encodes text itself")
    add_player_options(group, "--text_encoder_options", "the text encoder inside the network")
    group.add_argument(
        "--freeze_text_encoder", action="store_true", help="do not train that text encoder"
    )
    group.add_argument(
        "--freeze_flow", action="store_true", help="train nothing but that text encoder"
    )


def add_objective_group(parser: Parser) -> None:
    """Declares the loss and the times it is evaluated at."""
    group = parser.add_argument_group("objective", "time 0 is noise, time 1 is data")
    group.add_argument(
        "--objective",
        choices=("flow_matching", "mean_flow"),
        default="flow_matching",
        help="velocities, or average velocities that sample in one step",
    )
    group.add_argument(
        "--time_distribution",
        choices=("uniform", "logit_normal"),
        default="logit_normal",
        help="times that training draws",
    )
    group.add_argument(
        "--time_mean",
        type=float,
        default=0.0,
        metavar="M",
        help="mean of the logit-normal; above 0 leans to the data (papers whose time runs from "
        "data to noise write it with the other sign)",
    )
    group.add_argument(
        "--time_std", type=positive_float, default=1.0, metavar="S", help="and its deviation"
    )
    group.add_argument(
        "--time_shift",
        type=positive_float,
        default=1.0,
        metavar="S",
        help="above 1 moves times towards the noise, as larger images need",
    )
    group.add_argument(
        "--direction_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of 1 - cosine of predicted and true velocity (flow_matching)",
    )
    group.add_argument(
        "--cfg_dropout_prob",
        type=probability,
        default=0.1,
        metavar="P",
        help="share of samples that learn without their class and caption, for guidance; where "
        "there are both, P/2 more learn without the class alone and P/2 without the caption alone",
    )


def add_mean_flow_group(parser: Parser) -> None:
    """Declares what only ``--objective mean_flow`` reads."""
    group = parser.add_argument_group("mean flow", "for --objective mean_flow")
    group.add_argument(
        "--meanflow_ratio",
        type=probability,
        default=0.25,
        metavar="P",
        help="share of samples whose end time differs; the rest is flow matching",
    )
    group.add_argument(
        "--meanflow_power",
        type=non_negative_float,
        default=1.0,
        metavar="P",
        help="p of the adaptive weight 1 / (|error|^2 + c)^p",
    )
    group.add_argument(
        "--meanflow_const", type=positive_float, default=1e-2, metavar="C", help="c of that weight"
    )
    group.add_argument(
        "--meanflow_omega",
        type=positive_float,
        default=1.0,
        metavar="W",
        help="guidance inside the target: weight of the sample's velocity; effective scale "
        "omega / (1 - kappa)",
    )
    group.add_argument(
        "--meanflow_kappa",
        type=probability,
        default=0.0,
        metavar="K",
        help="and of the network's own conditional velocity, below 1",
    )
    group.add_argument(
        "--meanflow_window",
        type=probability,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="times at which that guidance holds",
    )
    add_switch(
        group,
        "--meanflow_improved",
        False,
        "take the derivative along the network's own velocity (improved MeanFlow)",
    )


def add_validation_group(parser: Parser) -> None:
    """Declares figures and pictures while training."""
    group = parser.add_argument_group("validation", "figures and samples while training")
    group.add_argument(
        "--eval_steps",
        type=non_negative_int,
        default=5000,
        metavar="N",
        help="steps between validations; 0 never",
    )
    group.add_argument(
        "--eval_batch_size", type=positive_int, default=64, metavar="N", help="samples at a time"
    )
    group.add_argument(
        "--eval_num_samples",
        type=positive_int,
        default=512,
        metavar="N",
        help="held-out and generated samples that are compared",
    )
    group.add_argument(
        "--eval_num_images",
        type=non_negative_int,
        default=64,
        metavar="N",
        help="samples in the picture; 0 draws none",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="heun",
        help="how they are generated (mean_flow models: in one step besides)",
    )
    group.add_argument(
        "--sampling_steps", type=positive_int, default=25, metavar="N", help="and in how many steps"
    )
    group.add_argument(
        "--guidance_scale",
        type=non_negative_float,
        default=1.0,
        metavar="W",
        help="and with what classifier-free guidance; 1 is none",
    )
    group.add_argument(
        "--sample_prompts",
        type=prompt_text,
        nargs="+",
        metavar="TEXT",
        help="what the picture shows, a row each (default: captions of held-out data)",
    )
