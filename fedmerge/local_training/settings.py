"""How clients train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalSettings:
    """How clients train. lr is that of the first round; in round t it is lr * lr_decay ** (t - 1)."""

    seed: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    lr_decay: float = 1.0
    clip_norm: float | None = None
    augment: bool = False
    bf16: bool = False
    max_steps: int | None = None  # of training in one round
    optimizer: str = "sgd"  # of OPTIMIZERS
    capture: bool = False  # take steps by CUDA graphs where that is possible
    bn: str = "train"  # or "eval_after_first_epoch", or "frozen", where a model's vector has no statistics
    bn_means: bool = False  # BatchNorm's statistics are means over the steps, not moving averages
    bn_recalibrate: bool = False  # measure BatchNorm's statistics anew where weights were averaged


def gradients_of(n_steps, momentum):
    """Return how many gradients an update of so many steps of SGD is made of, coefficients added up.

    Without momentum one a step. With it a gradient goes on acting in the steps that follow: this is ||a_i||_1 of
    FedNova (Wang et al. 2020, section 4.2).
    """
    return (n_steps - momentum * (1 - momentum**n_steps) / (1 - momentum)) / (1 - momentum)
