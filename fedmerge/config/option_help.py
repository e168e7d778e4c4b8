"""What flags say of what is registered: their help, and what they need.

Nothing here imports torch.
"""

from fedmerge.config.kinds import pattern
from fedmerge.registry import having, said, specs

MODEL = "resnet18"  # that is trained on a dataset which does not say which
FOLDER_SIZE = 32  # pixels of the images of a folder, unless --image_size says otherwise
NORMS = ("batch", "group")  # that a network has which does not say which; the first is its default


def dataset_help() -> str:
    """Return the help of --dataset."""
    bundled = ", ".join(having("dataset", "bundled"))
    return (
        f"{', '.join(specs('dataset'))}, or a folder of images or NAME.npz in --data_root; without download: {bundled}"
    )


def model_help() -> str:
    """Return the help of --model_name."""
    return f"default: {_by_value('dataset', having('dataset', 'model'), 'model')}; else {MODEL}"


def partition_help() -> str:
    """Return the help of --partition."""
    kinds = [f"{pattern(spec)} = {spec.summary}" for _, spec in sorted(specs("partition").items())]
    return f"how the data are split, instead of --dirichlet: {'; '.join(kinds)}"


def augment_help() -> str:
    """Return the help of --augment."""
    those = ", ".join(having("dataset", "augment"))
    return (
        "standard = crop, after padding with 4 black pixels, and flip; reflect = the same with mirrored pixels; "
        f"default: standard for {those}; none for others"
    )


def norm_help() -> str:
    """Return the help of --norm."""
    return f"default: {_by_value('model_name', sorted(specs('model_name')), 'norms', NORMS)}"


def pretrained_help() -> str:
    """Return the help of --pretrained."""
    return f"start from published ImageNet weights: of {', '.join(having('model_name', 'pretrained'))}"


def averaging() -> str:
    """Return what --bn_recalibrate needs: a local method that averages models."""
    return f"local={'|'.join(having('local', 'averages'))}"


def cohort_help() -> str:
    """Return the help of --max_cohort_memory."""
    rules = [name for name, spec in sorted(specs("merge").items()) if isinstance(spec.more.get("needs"), str)]
    needing = f"--merge {' or '.join(rules)} needs all of a round"
    return f"GiB that updates may take which wait to be merged: {needing}, and each of several processes its own"


def no_pool() -> str:
    """Return what --n_client_epochs needs: a local method that has no epochs of its own."""
    names = [name for name, spec in sorted(specs("local").items()) if "soup_epochs" not in spec.options]
    return f"local={'|'.join(names)}"


def _by_value(shelf, names, keyword, default=None):
    """Return in words what the components of these names say of `keyword`, or the first of what they say."""
    groups = {}
    for name in names:
        value = said(shelf, name, keyword, default)
        groups.setdefault(value if isinstance(value, str) else value[0], []).append(specs(shelf)[name].shown)
    return "; ".join(f"{value} for {', '.join(group)}" for value, group in groups.items())
