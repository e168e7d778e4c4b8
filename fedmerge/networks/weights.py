"""Starting weights: published ones, and those that earlier runs left."""

import io
from pathlib import Path

import torch

from fedmerge import files, tensor_files
from fedmerge.errors import InputError
from fedmerge.networks.exported import read_safetensors, safetensors_of
from fedmerge.networks.flat_model import head_of
from fedmerge.registry import NETWORKS, said
from fedmerge.saving import write_atomic


def load_pretrained(module, name):
    """Put the published weights into a `name` of `build_model`, as its file says, all but the head.

    Raises InputError where the weights are not on this machine and cannot be fetched.
    """
    _load_all_but_head(module, published_weights(name, module), f"the ImageNet weights of {name}")


def for_channels(kernels, channels):
    """Return the kernels [out, 3, H, W] of a first layer for so many channels: the sum over colours for one."""
    return kernels if channels == 3 else kernels.sum(1, keepdim=True)


def published_weights(name, module=None):
    """Return the published weights {name: tensor} of a network as they fit `module`, but for the head.

    Without a module they are only fetched, or found. Raises InputError as `load_pretrained` does.
    """
    registered = NETWORKS[name].registered
    if "weights" in registered:
        return registered["weights"](name, module)
    weights = _fetch(name)
    return registered["fit"](weights, module) if module is not None and "fit" in registered else weights


def _fetch(name):
    url = said("model_name", name, "pretrained")
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a bad sum, a damaged file: each library has its own exceptions for them
        words = " ".join(str(error).split())
        raise InputError(
            f"cannot get the ImageNet weights of {name} ({words}); where there is a network run "
            f"'python models.py --download {name}', or put {url} into {pretrained_folder()}"
        ) from None


def pretrained_folder():
    """Return the Path where published weights are kept."""
    return Path(torch.hub.get_dir()) / "checkpoints"


FORMAT = "fedalg-weights-1"


def save_weights(path, module, labels=None):
    """Write the module's state for `load_weights`: tensors and primitives only; as safetensors if that is how the name
    of the file ends. labels: the name of its classes.
    """
    state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    # Counters of batches are of this process, not of the model: a run that went on after a kill counted fewer.
    state = {name: t if t.is_floating_point() else torch.zeros_like(t) for name, t in state.items()}
    if Path(path).suffix.lower() == ".safetensors":
        return write_atomic(
            path, safetensors_of(state, {"format": FORMAT} | ({} if labels is None else {"labels": labels}))
        )
    file = io.BytesIO()
    torch.save({"format": FORMAT, "labels": labels, "state": state}, file)
    write_atomic(path, file.getvalue())


def load_weights(module, path, labels=None):
    """Load what `save_weights` wrote, or the weights of such a network in a safetensors file from elsewhere; for other
    `labels`, or another number of them, the head is left as initialised.

    Raises InputError if the file is none of these, or not of this kind of model.
    """
    if Path(path).suffix.lower() == ".onnx":
        raise InputError(f"{path}: ONNX is for other programs to run a model: --save_weights FILE.pt or .safetensors")
    own = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    limit = 2 * own + 2**26  # twice, for another head or type
    state, of = (_read_tensors if Path(path).suffix.lower() == ".safetensors" else _read_saved)(path, limit)
    same = labels is None or of is None or (isinstance(of, str) and of == labels)
    _load_all_but_head(module, state, path, keep_head=same)


def _read_tensors(path, limit):
    """Return the tensors {name: tensor} of a safetensors file, and the name of the classes of its head, if it tells."""
    try:
        tensors, metadata = read_safetensors(files.read_bytes(path, limit))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    return tensors, metadata.get("labels") if metadata.get("format") == FORMAT else None


def _read_saved(path, limit):
    saved = tensor_files.load(path, limit, "a file of --save_weights")
    form, state = (saved.get("format"), saved.get("state")) if isinstance(saved, dict) else (None, None)
    if not isinstance(form, str) or form != FORMAT or not isinstance(state, dict):
        raise InputError(f"{path}: not a file of --save_weights")
    return state, saved.get("labels")


def _load_all_but_head(module, weights, source, keep_head=True):
    """Load `weights` {name: tensor}; the head only if `keep_head` and its shape fits.

    Raises InputError for any other misfit.
    """
    own = {name: t for name, t in module.state_dict().items() if t.is_floating_point()}  # not num_batches_tracked
    given = {n: t for n, t in weights.items() if isinstance(n, str) and torch.is_tensor(t) and t.is_floating_point()}
    head = [name for name in own if name.rpartition(".")[0] == head_of(module)]
    wrong = set(own) ^ set(given)
    wrong |= {name for name in set(own) - wrong if not tensor_files.is_plain(given[name])}
    wrong |= {name for name in set(own) - wrong - set(head) if own[name].shape != given[name].shape}
    if wrong:
        raise InputError(f"{source}: is for another model ({len(wrong)} tensors do not fit, one is {min(wrong)})")
    if not keep_head or any(own[name].shape != given[name].shape for name in head):
        given.update({name: own[name] for name in head})
    module.load_state_dict(given, strict=False)
