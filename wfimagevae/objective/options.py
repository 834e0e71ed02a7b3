"""Options of the flows' objectives. No torch here."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from wfimagevae.options import Count, NonNegative, Number, Options, Positive, Share, Switch, option

OBJECTIVES = {
    "flow_matching": "wfimagevae.objective.flow_matching.FlowMatching",
    "mean_flow": "wfimagevae.objective.mean_flow.MeanFlow",
}


class ObjectiveOptions(Options):
    """objective: time 0 is noise, time 1 is data"""

    objective: Literal[tuple(OBJECTIVES)] = option(
        "flow_matching", "velocities, or average velocities that sample in one step", basic=True
    )
    time_distribution: Literal["uniform", "logit_normal"] = option(
        "logit_normal", "times that training draws"
    )
    time_mean: Number = option(
        0.0,
        "mean of the logit-normal; above 0 leans to the data (papers whose time runs from "
        "data to noise write it with the other sign)",
        "M",
    )
    time_std: Positive = option(1.0, "and its deviation", "S")
    time_shift: Positive = option(
        1.0, "above 1 moves times towards the noise, as larger images need", "S"
    )
    direction_weight: NonNegative = option(
        0.0, "weight of 1 - cosine of predicted and true velocity (flow_matching)", "W"
    )
    cfg_dropout_prob: Share = option(
        0.1,
        "share of samples that learn without their class and caption, for guidance; where "
        "there are both, P/2 more learn without the class alone and P/2 without the caption "
        "alone",
        "P",
        basic=True,
    )


class NoisePredictionOptions(Options):
    """objective: the noise in an image, at discrete times of which 0 is nearest to data"""

    objective: ClassVar[str] = "noise_prediction"

    cfg_dropout_prob: Share | None = option(
        None,
        "share of samples that learn without their caption, for guidance (default: 0.2, of "
        "upsamplers 0)",
        "P",
        basic=True,
    )
    vlb_weight: NonNegative | None = option(
        None,
        "weight of the variational bound, in bits a dimension, which teaches the variances "
        "(default: 1 with --train all, else 0)",
        "W",
    )
    min_snr_gamma: NonNegative = option(
        0.0, "weigh errors by min(SNR, G) / SNR, such as 5; 0: all times alike", "G"
    )
    loss_spike_threshold: NonNegative = option(
        5.0,
        "a sample whose error is more than this many times the usual one of its times is left "
        "out, and counted; 0: none is",
        "X",
    )
    upscale_factor: Count = option(4, "of an upsampler: large by small side", "N")
    low_res_noise: NonNegative = option(
        0.0, "and deviation of the noise on the small images that it learns from", "S"
    )


class MeanFlowOptions(ObjectiveOptions):
    """mean flow: for --objective mean_flow"""

    meanflow_ratio: Share = option(
        0.25, "share of samples whose end time differs; the rest is flow matching", "P"
    )
    meanflow_power: NonNegative = option(1.0, "p of the adaptive weight 1 / (|error|^2 + c)^p", "P")
    meanflow_const: Positive = option(0.01, "c of that weight", "C")
    meanflow_omega: Positive = option(
        1.0,
        "guidance inside the target: weight of the sample's velocity; effective scale omega / "
        "(1 - kappa)",
        "W",
    )
    meanflow_kappa: Share = option(
        0.0, "and of the network's own conditional velocity, below 1", "K"
    )
    meanflow_window: tuple[Share, Share] = option(
        (0.0, 1.0), "times at which that guidance holds", ("LOW", "HIGH")
    )
    meanflow_improved: Switch = option(
        False, "take the derivative along the network's own velocity (improved MeanFlow)"
    )

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        if self.meanflow_kappa == 1:
            raise ValueError("--meanflow_kappa must be in [0, 1), got 1")
        low, high = self.meanflow_window
        if low >= high:
            raise ValueError(f"--meanflow_window must be low < high, got {low:g} {high:g}")
        if self.objective == "flow_matching" and self.guides_target:
            raise ValueError("--meanflow_omega, --meanflow_kappa: for --objective mean_flow only")
        if self.objective == "mean_flow" and self.direction_weight:
            raise ValueError("--direction_weight is a term of --objective flow_matching only")
        if self.guides_target and not self.cfg_dropout_prob:
            raise ValueError("guidance in the target needs --cfg_dropout_prob above 0")
        return self

    @property
    def guides_target(self) -> bool:
        """Whether the target differs from the plain velocity."""
        return self.meanflow_omega != 1.0 or self.meanflow_kappa != 0.0
