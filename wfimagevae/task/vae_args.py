"""Flags of image-VAE training. No torch here."""

from wfimagevae.dataset.args import add_data_args, add_eval_data_args
from wfimagevae.engine.args import (
    Parser,
    add_switch,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    probability,
)
from wfimagevae.engine.run_args import add_player_options


def add_args(parser: Parser) -> None:
    """Declares the flags of data, model, losses and validation."""
    add_data_args(parser)
    add_model_group(parser)
    add_loss_group(parser)
    add_discriminator_group(parser)
    add_eval_data_args(parser)
    add_validation_group(parser)


def add_model_group(parser: Parser) -> None:
    """Declares the autoencoder."""
    group = parser.add_argument_group("model", "the autoencoder")
    group.add_argument(
        "--model_name",
        default="WFVAE2Image",
        metavar="NAME",
        help="registered name of the architecture",
    )
    group.add_argument(
        "--model_config",
        metavar="FILE",
        help="JSON of the architecture, such as examples/wfvae2-image-1024.json",
    )
    group.add_argument(
        "--pretrained_model_name_or_path",
        metavar="PATH",
        help="start from these weights: a .ckpt, a folder or a hub name",
    )
    group.add_argument(
        "--ignore_mismatched_sizes",
        action="store_true",
        help="pretrained weights of another shape start anew, with a warning",
    )
    group.add_argument("--freeze_encoder", action="store_true", help="train the decoder only")
    group.add_argument(
        "--freeze_decoder",
        action="store_true",
        help="train the encoder only; with a discriminator, add --no_adaptive_weight",
    )


def add_loss_group(parser: Parser) -> None:
    """Declares the weights of the losses."""
    group = parser.add_argument_group(
        "losses",
        "weights are for sums over pixels divided by the batch size (LPIPS, colour, histogram, "
        "contrast and MMD: one number an image, counted once per pixel value); a term of "
        "weight 0 is not computed",
    )
    group.add_argument(
        "--loss_type", choices=("l1", "l2"), default="l1", help="absolute or squared error"
    )
    group.add_argument(
        "--rec_weight",
        type=non_negative_float,
        default=1.0,
        metavar="W",
        help="weight of that error",
    )
    group.add_argument(
        "--perceptual_weight",
        type=non_negative_float,
        default=1.0,
        metavar="W",
        help="weight of LPIPS (VGG)",
    )
    group.add_argument(
        "--mse_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of the squared error, beside --loss_type's",
    )
    group.add_argument(
        "--color_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of the difference of channel means and standard deviations",
    )
    group.add_argument(
        "--histogram_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of the Wasserstein-1 distance of channel histograms",
    )
    group.add_argument(
        "--contrast_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of the difference of local standard deviations (8x8 pixels)",
    )
    group.add_argument(
        "--lpips_weights",
        metavar="FILE",
        help="torchvision's VGG16 weights, where they cannot be downloaded",
    )
    group.add_argument(
        "--kl_weight",
        type=non_negative_float,
        default=1e-6,
        metavar="W",
        help="weight of the KL divergence",
    )
    group.add_argument(
        "--kl_warmup_steps",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="steps over which that weight grows from 0, as half a cosine",
    )
    group.add_argument(
        "--kl_free_bits",
        type=non_negative_float,
        default=0.0,
        metavar="NATS",
        help="divergence of each latent value that is free: below it, no KL gradient",
    )
    group.add_argument(
        "--mmd_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of the squared maximum mean discrepancy (Gaussian kernels) between all "
        "processes' latent pixels and the standard normal",
    )
    group.add_argument(
        "--wavelet_loss",
        action="store_true",
        help="tie the decoder's wavelet coefficients to the encoder's; without "
        "it --wavelet_weight has no effect",
    )
    group.add_argument(
        "--wavelet_weight",
        type=non_negative_float,
        default=0.1,
        metavar="W",
        help="weight of that term",
    )
    group.add_argument(
        "--logvar_init",
        type=float,
        default=0.0,
        metavar="X",
        help="log-variance of the reconstruction likelihood",
    )


def add_discriminator_group(parser: Parser) -> None:
    """Declares the discriminator and its schedule."""
    group = parser.add_argument_group("discriminator", "PatchGAN with spectral norm")
    group.add_argument(
        "--disc_cls",
        default="wfimagevae.model.losses.LPIPSWithDiscriminator2D",
        metavar="PATH",
        help="dotted path of the loss class",
    )
    group.add_argument(
        "--gan_schedule",
        choices=("joint", "alternate"),
        default="joint",
        help="joint: both players on each batch, with one VAE forward; alternate: "
        "even steps the generator's, odd steps the discriminator's",
    )
    group.add_argument(
        "--disc_start",
        type=non_negative_int,
        default=5,
        metavar="STEP",
        help="step from which the adversarial term counts",
    )
    group.add_argument(
        "--disc_train_start",
        type=non_negative_int,
        metavar="STEP",
        help="step from which the discriminator learns; --disc_start if not given",
    )
    group.add_argument(
        "--disc_ramp_steps",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="steps over which the adversarial weight grows after --disc_start",
    )
    group.add_argument(
        "--disc_weight",
        type=non_negative_float,
        default=0.5,
        metavar="W",
        help="weight of the adversarial term; 0 trains without a discriminator",
    )
    add_switch(
        group,
        "--adaptive_weight",
        True,
        "scale that weight to the reconstruction's gradient at the last layer",
    )
    group.add_argument(
        "--disc_loss",
        choices=("hinge", "vanilla"),
        default="hinge",
        help="the discriminator's loss",
    )
    group.add_argument(
        "--disc_num_layers",
        type=positive_int,
        default=4,
        metavar="N",
        help="its convolutions with stride 2",
    )
    group.add_argument(
        "--r1_weight",
        type=non_negative_float,
        default=0.0,
        metavar="W",
        help="weight of half the squared gradient of a real image's mean logit in its pixels, "
        "in the discriminator's loss",
    )
    group.add_argument(
        "--r1_interval",
        type=positive_int,
        default=16,
        metavar="N",
        help="its updates from one with that term, N times as strong, to the next",
    )
    group.add_argument(
        "--instance_noise_std",
        type=non_negative_float,
        default=0.0,
        metavar="STD",
        help="normal noise on all it sees, in pixel values of [-1, 1]",
    )
    group.add_argument(
        "--instance_noise_decay",
        type=probability,
        default=1.0,
        metavar="R",
        help="factor of that noise from step to step; below 1e-4 it ends",
    )
    group.add_argument(
        "--disc_lr_ratio",
        type=positive_float,
        default=4.0,
        metavar="R",
        help="its learning rate, as a multiple of --lr",
    )
    add_player_options(group, "--discriminator_options", "the discriminator")
    group.add_argument(
        "--freeze_discriminator",
        action="store_true",
        help="the adversarial term counts, the discriminator does not learn",
    )
    group.add_argument(
        "--not_resume_discriminator", action="store_true", help="resume with a fresh discriminator"
    )


def add_validation_group(parser: Parser) -> None:
    """Declares figures and pictures while training."""
    group = parser.add_argument_group("validation", "figures and pictures while training")
    group.add_argument(
        "--eval_steps",
        type=non_negative_int,
        default=500,
        metavar="N",
        help="steps between validations; 0 never",
    )
    group.add_argument(
        "--disable_val_image_dump", action="store_true", help="write no validation images"
    )
    group.add_argument(
        "--disable_patch_score_vis",
        action="store_true",
        help="write no maps of the discriminator's patch scores",
    )
    group.add_argument(
        "--patch_score_vis_max_samples",
        type=positive_int,
        default=4,
        metavar="N",
        help="images to draw those maps for",
    )
