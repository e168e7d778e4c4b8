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
    bn_recalibrate: bool = False  # measure BatchNorm's statistics anew where weights were averaged
