"""All image classifiers of timm, PyTorch Image Models, which is imported only where one is asked for."""

import difflib
import logging

from fedmerge.errors import InputError, reason
from fedmerge.networks.draws import keyed_draws
from fedmerge.registry import network

OFFERED = ("img_size", "patch_size", "drop_path_rate")  # what timm's networks take or do not take


def published_weights(name, module):
    """Return the weights {name: tensor} that timm downloads for `name`, as they fit the module, or its own for None.

    Raises InputError where it has none, or cannot get them.
    """
    import timm

    _check_known(name)
    member = name.removeprefix("timm/")
    if not timm.is_model_pretrained(member):
        raise InputError(f"--pretrained: timm has no published weights of {member}")
    how = {} if module is None else module.made_with
    for chatty in ("timm", "huggingface_hub"):  # which tell of each step and each of several attempts
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        with keyed_draws(0):  # what is not published, as a second head, is the same in every run
            return timm.create_model(member, pretrained=True, **how).state_dict()
    except Exception as error:  # no network, a damaged file: each library has its own exceptions for them
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(
            f"cannot get the published weights of {name} ({said}); where there is a network run "
            f"'python models.py --download {name}', which keeps them in the cache of huggingface_hub"
        ) from None


def _check_known(name):
    """Raise InputError unless timm has a network of this name, with those that are nearest."""
    import timm

    member, known = name.removeprefix("timm/"), timm.list_models()
    if not timm.is_model(member) or member not in [*known, *timm.list_pretrained()]:
        near = difflib.get_close_matches(member, known, n=3, cutoff=0.5)
        did_you_mean = f": did you mean {', '.join(f'timm/{name}' for name in near)}?" if near else ""
        raise InputError(f"--model_name timm/{member}: timm {timm.__version__} has no such network{did_you_mean}")


def _create(member, given, **offered):
    """Return timm's network, made with what it takes of `offered`; it carries with what as `made_with`.

    Raises InputError if it does not take what was `given`, names of these, or cannot be made.
    """
    import timm

    while True:
        try:
            module = timm.create_model(member, **offered)
        except TypeError as error:
            refused = next((word for word in OFFERED if word in offered and f"'{word}'" in str(error)), None)
            if refused is None:
                raise
            if refused in given:
                raise InputError(f"--{refused} has no effect with --model_name timm/{member}: leave it out") from None
            del offered[refused]
            continue
        module.made_with = offered
        return module


@network(
    "timm/",
    norms=("own",),
    pretrained="the cache of huggingface_hub",
    weights=published_weights,
    check=_check_known,
    example="resnet18",
    library="timm",
    options={
        "drop_rate": (None, "decay", "dropout before the last layer (default: as the network has it, mostly 0)"),
        "drop_path_rate": (
            None,
            "decay",
            "stochastic depth of the last block (default: as the network has it, mostly 0)",
        ),
        "patch_size": (None, "count", "pixels of a patch, for networks that see images as such (default: timm's)"),
    },
)
def timm_network(channels, image_size, n_classes, norm, member, drop_rate, drop_path_rate, patch_size):
    """the network of this name in timm: ResNets, ConvNeXts, EfficientNets, vision transformers and others

    It is timm's own, with its stem and its norm layers, for the channels, the classes and, where it takes one, the size
    of the images. Raises InputError for a name that timm does not know, with those that are nearest.
    """
    _check_known(f"timm/{member}")
    wanted = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "patch_size": patch_size}
    given = {word: value for word, value in wanted.items() if value is not None}
    shape = {"in_chans": channels, "num_classes": n_classes, "img_size": image_size}
    try:
        return _create(member, given, **shape, **given)
    except InputError:
        raise
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"--model_name timm/{member} cannot be made for images of {image_size} pixels ({reason(error)}): another "
            "--image_size"
        ) from error
