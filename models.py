"""Networks, and the flat vector that holds one network's whole state.

`python models.py --download resnet18` fetches the ImageNet weights that `--pretrained` starts from.
"""

import argparse
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

import memory
import tensors
from records import write_atomic
from utils import PRETRAINED, InputError

NORMS = (nn.BatchNorm2d, nn.GroupNorm)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layout:
    """What lies where in a model's vector: trainable tensors in order, then float buffers."""

    names: tuple  # of the trainable tensors
    sizes: tuple  # numbers of weights of the trainable tensors, "layers"; they sum to n_trainable
    n_trainable: int
    dim: int  # with the buffers
    norms: tuple = ()  # (begin, end) of what belongs to normalisation layers, buffers included


class FlatModel:
    """A module whose parameters, gradients and float buffers are views into two contiguous vectors.

    vector [dim]: all parameters in the module's order, then all float buffers (BatchNorm's running statistics).
    gradient [n_trainable]: backward() accumulates here. Integer buffers (num_batches_tracked) are not state.

    Writing to `vector` changes the module and training the module changes `vector`: nothing is copied either way.
    Raises ValueError for a module that uses one parameter in two places.
    """

    def __init__(self, module, device="cpu"):
        self.module = module.to(device)
        parameters = list(module.named_parameters(remove_duplicate=False))
        if len(parameters) != len(list(module.parameters())):
            raise ValueError("a parameter is used in two places of the module: its vector would hold it twice")
        buffers = [(name, b) for name, b in module.named_buffers() if b.is_floating_point()]
        sizes = tuple(p.numel() for _, p in parameters)
        ends = list(accumulate(t.numel() for _, t in parameters + buffers))
        places = zip((name for name, _ in parameters + buffers), [0, *ends], ends, strict=False)
        self.layout = Layout(
            names=tuple(name for name, _ in parameters),
            sizes=sizes,
            n_trainable=sum(sizes),
            dim=ends[-1],
            norms=tuple((a, b) for name, a, b in places if isinstance(self._owner(name), NORMS)),
        )
        self.vector = torch.cat([t.detach().flatten().float() for _, t in parameters + buffers])
        self.gradient = torch.zeros_like(self.trainable)
        self._bind(parameters, buffers)
        self._views = parameters + buffers  # (name, tensor of its shape) in the vector's order
        self.features = None

    def _bind(self, parameters, buffers):
        offset = 0
        for name, old in parameters + buffers:
            owner, attribute = self._owner(name), name.rpartition(".")[2]
            view = self.vector[offset : offset + old.numel()].view_as(old)
            if isinstance(old, nn.Parameter):
                setattr(owner, attribute, nn.Parameter(view))
                getattr(owner, attribute).grad = self.gradient[offset : offset + old.numel()].view_as(old)
            else:
                setattr(owner, attribute, view)
            offset += old.numel()

    def _owner(self, name):
        return self.module.get_submodule(name.rpartition(".")[0])

    @property
    def trainable(self):
        """View of the trainable part of `vector`, [n_trainable]."""
        return self.vector[: self.layout.n_trainable]

    def load(self, vector):
        """Copy `vector [dim]` into the model."""
        self.vector.copy_(vector)

    def tensors_of(self, vector):
        """Return {name: tensor of its shape} of another `vector [dim]`, as torch.func.functional_call takes them."""
        tensors, offset = {}, 0
        for name, view in self._views:
            tensors[name] = vector[offset : offset + view.numel()].view_as(view)
            offset += view.numel()
        return tensors

    @contextmanager
    def keeping_features(self):
        """While this lasts, `features` [B, k] is what entered the last linear layer in the latest forward pass."""
        head = [m for m in self.module.modules() if isinstance(m, nn.Linear)][-1]

        def keep(_, inputs):
            self.features = inputs[0]

        handle = head.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()
            self.features = None

    def features_of(self, vector, x):
        """Return the features [B, k] of images x at another `vector [dim]`, with its BatchNorm statistics.

        Works within `keeping_features`; leaves the model in training mode.
        """
        self.module.eval()
        torch.func.functional_call(self.module, self.tensors_of(vector), (x,))
        self.module.train()
        return self.features


# --------------------------------------------------------------------------------------------------------------------
# Networks


def _norm_layer(norm):
    """Return the function channels -> layer for `norm`."""
    if norm == "group":
        return lambda channels: nn.GroupNorm(_groups(channels), channels)
    return {"batch": nn.BatchNorm2d, "none": lambda channels: nn.Identity()}[norm]


def _groups(channels):
    """Return the most groups that divide the channels evenly: at most the 32 of Wu and He 2018, 4 channels in each."""
    return max(n for n in range(1, max(1, min(32, channels // 4)) + 1) if channels % n == 0)


def cnn(channels, image_size, n_classes, norm):
    """Two 5x5 convolutions (32, 64 channels), each pooled, and 512 hidden units (McMahan et al. 2017, section 3)."""
    layer = _norm_layer(norm)
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), layer(32), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5, padding=2), layer(64), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(64 * (image_size // 4) ** 2, 512), nn.ReLU(), nn.Linear(512, n_classes)),
    )


def _resnet(name, channels, image_size, n_classes, norm):
    """torchvision's ResNet with a 3x3 stride-1 stem and no max-pool, for images of 32 and 64 pixels."""
    import torchvision

    model = getattr(torchvision.models, name)(num_classes=n_classes, norm_layer=_norm_layer(norm))
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


MODELS = {
    "cnn": cnn,
    "resnet18": partial(_resnet, "resnet18"),
    "resnet50": partial(_resnet, "resnet50"),
}


LARGEST = 2**31  # weights: positions are int32, and so are counts of a message
COPIES = 5  # of the vector that a run has at least: a client's, its gradient, the server's, an update, their sum


def build_model(name, channels, image_size, n_classes, norm, seed, device="cpu"):
    """Return the freshly initialised module; the same `seed` gives the same weights whatever was drawn before.

    Raises InputError, before anything is allocated, for one that the memory of the torch.device does not hold.
    """
    with torch.device("meta"):
        shapes = MODELS[name](channels, image_size, n_classes, norm)
    check_size(name, sum(p.numel() for p in shapes.parameters()), device)
    with keyed_draws(seed):
        return MODELS[name](channels, image_size, n_classes, norm)


def check_size(name, n_weights, device):
    """Raise InputError if a run with so many weights cannot be."""
    there = memory.free(torch.device(device))
    said = f"--model_name {name} has {n_weights:,} weights for images of this size"
    advice = "a smaller --image_size, or another network"
    if n_weights >= LARGEST:
        raise InputError(f"{said}, more than 2^31: {advice}")
    if COPIES * 4 * n_weights > there:
        raise InputError(
            f"{said}, of which a run holds {COPIES} copies, {memory.in_words(COPIES * 4 * n_weights)}, and "
            f"{memory.in_words(there)} are free: {advice}"
        )


# --------------------------------------------------------------------------------------------------------------------
# Networks that draw, as those with dropout do


@contextmanager
def keyed_draws(seed, device=CPU):
    """While this lasts, torch's global generators draw from `seed`; afterwards those of the CPU and of a CUDA `device`
    go on as if it had not been.

    There is one generator for all threads of a process: only one of them may draw meanwhile.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)  # of every device
        yield


@torch.no_grad()
def draws_at_random(model, x):
    """Tell whether the module of a FlatModel draws from torch's global generators as it trains on images x [B, ...].

    Dropout and stochastic depth do, as layers or as functions that a layer calls. The model is left as it was.
    """
    before, device = model.vector.clone(), model.vector.device
    with keyed_draws(0, device):
        states = _generator_states(device)
        model.module.train()
        model.module(x)
        drawn = any(not torch.equal(*pair) for pair in zip(states, _generator_states(device), strict=True))
    model.load(before)  # BatchNorm has looked at x
    return drawn


def _generator_states(device):
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        of = torch.get_device_module(device).get_rng_state
        states.append(of(device) if device.type == "cuda" else of())
    return states


# --------------------------------------------------------------------------------------------------------------------
# Starting weights


def load_pretrained(module, name):
    """Put torchvision's ImageNet weights (IMAGENET1K_V1) into a `name` of `build_model`, all but the head.

    The 3x3 stem takes the centre of the published 7x7 kernels; a stem for one channel takes their sum over colours.
    Raises InputError where the weights are not on this machine and cannot be fetched.
    """
    weights = _fetch_pretrained(name)
    stem = weights["conv1.weight"][:, :, 2:5, 2:5]
    weights["conv1.weight"] = stem if module.conv1.in_channels == 3 else stem.sum(1, keepdim=True)
    _load_all_but_head(module, weights, f"the ImageNet weights of {name}")


def _fetch_pretrained(name):
    import torchvision

    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a bad sum, a damaged file: each library has its own exceptions for them
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        said = " ".join(str(error).split())
        raise InputError(
            f"cannot get the ImageNet weights of {name} ({said}); where there is a network run "
            f"'python models.py --download {name}', or put {url} into {folder}"
        ) from None


def save_weights(path, module, labels=None):
    """Write the module's state for `load_weights`: tensors and primitives only. labels: the name of its classes."""
    import io

    file = io.BytesIO()
    state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    # Counters of batches are of this process, not of the model: a run that went on after a kill counted fewer.
    state = {name: t if t.is_floating_point() else torch.zeros_like(t) for name, t in state.items()}
    torch.save({"format": "fedalg-weights-1", "labels": labels, "state": state}, file)
    write_atomic(path, file.getvalue())


def load_weights(module, path, labels=None):
    """Load what `save_weights` wrote; for other `labels`, or another number of them, the head is left as initialised.

    Raises InputError if the file is not of this program or not of this kind of model.
    """
    own = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    saved = tensors.load(path, 2 * own + 2**26, "a file of --save_weights")  # twice, for another head or type
    form, state = (saved.get("format"), saved.get("state")) if isinstance(saved, dict) else (None, None)
    if not isinstance(form, str) or form != "fedalg-weights-1" or not isinstance(state, dict):
        raise InputError(f"{path}: not a file of --save_weights")
    of = saved.get("labels")
    same = labels is None or of is None or (isinstance(of, str) and of == labels)
    _load_all_but_head(module, state, path, keep_head=same)


def _load_all_but_head(module, weights, source, keep_head=True):
    """Load `weights` {name: tensor}; the last layer only if `keep_head` and its shape fits.

    Raises InputError for any other misfit.
    """
    own = {name: t for name, t in module.state_dict().items() if t.is_floating_point()}  # not num_batches_tracked
    given = {n: t for n, t in weights.items() if isinstance(n, str) and torch.is_tensor(t) and t.is_floating_point()}
    head = list(own)[-2:]  # weight and bias of the last linear layer
    wrong = set(own) ^ set(given)
    wrong |= {name for name in set(own) - wrong if not tensors.is_plain(given[name])}
    wrong |= {name for name in set(own) - wrong - set(head) if own[name].shape != given[name].shape}
    if wrong:
        raise InputError(f"{source}: is for another model ({len(wrong)} tensors do not fit, one is {min(wrong)})")
    if not keep_head or any(own[name].shape != given[name].shape for name in head):
        given.update({name: own[name] for name in head})
    module.load_state_dict(given, strict=False)


def main():
    parser = argparse.ArgumentParser(description="Fetch the published ImageNet weights for --pretrained.")
    parser.add_argument("--download", required=True, choices=PRETRAINED)
    try:
        _fetch_pretrained(parser.parse_args().download)
    except InputError as error:
        parser.error(str(error))
    print(f"in {Path(torch.hub.get_dir()) / 'checkpoints'}")


if __name__ == "__main__":
    main()
