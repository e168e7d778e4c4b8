"""Networks, and the flat vector that holds one network's whole state.

To add a network, add a file with a function that is registered under its name:

    @network("NAME", norms=("batch", "group"))
    def name(channels, image_size, n_classes, norm):
        \"\"\"what it is (whose it is)\"\"\"
        return module

The module takes float32 [B, channels, image_size, image_size] and returns logits [B, n_classes]; the layer that makes
them is its last. norm is one of `norms`, of which the first is the default; without the keyword, they are ("batch",
"group"). What else the decorator may say:

    pretrained  the address of published weights, with 8 digits of their SHA-256 in the file's name, for --pretrained
    weights     a function (name, module) that returns published weights {name: tensor} as they fit the module, but for
                the head; given None as the module, it only fetches or finds them. `pretrained` says in words whence
    options     {name: (default, kind, help)}: flags of its own, which the function is called with, by their names
    example     of a family, whose name ends in a slash and stands for all that begin with it: the name of a member. The
                function has a fifth argument, `member`: what is behind the slash
    check       of a family, a function (name) that raises InputError if it has no such member; called before any work
    library     the package of which another version may mean other figures
    fit         a function (weights, module) that makes of their {name: tensor} what fits the module, but for the head
"""

from fedmerge.networks.building import COPIES, LARGEST, build_model, check_name, check_size
from fedmerge.networks.draws import CPU, draws_at_random, keyed_draws
from fedmerge.networks.flat_model import FlatModel, Layout, head_of
from fedmerge.networks.norms import norm_layer
from fedmerge.networks.standardised import standardise
from fedmerge.networks.trainable import choose_trained
from fedmerge.networks.weights import load_pretrained, load_weights, save_weights

__all__ = [
    "COPIES",
    "CPU",
    "LARGEST",
    "FlatModel",
    "Layout",
    "build_model",
    "check_name",
    "check_size",
    "choose_trained",
    "draws_at_random",
    "head_of",
    "keyed_draws",
    "load_pretrained",
    "load_weights",
    "norm_layer",
    "save_weights",
    "standardise",
]
