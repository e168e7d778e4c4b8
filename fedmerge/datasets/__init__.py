"""Datasets as tensors, and the batches clients train on.

To add a dataset, add a file with a function that is registered under its name:

    @dataset("NAME", augment=True)
    def load_name(root, seed):
        \"\"\"what it is (who made it)\"\"\"
        return train, test, n_classes

It returns the training and the test Images in the folder `root`, a Path, the number of classes, and, if its images are
of several domains, the names of these, or, if images can be put in several, {name: (images, number of the part) ->
images}. What else the decorator may say:

    augment          True: train on augmented images unless --augment none
    pixels           how high and wide its images are: --image_size of so many is none
    never_augmented  why --augment standard is refused
    bundled          True: there is nothing to download
    domains          True: there are several, for --shift feature and --partition users
    model            the network that is trained unless --model_name names another
    label_set        the dataset that has the same classes in the same order
    download         what `python data.py --download` fetches: {file: (URL, MD5)}, or the name of a class of
                     torchvision.datasets that does
    then             the command that is to be run after that
"""

from fedmerge.datasets.batches import (
    CPU_PIXELS,
    CROP_PADDING,
    PIXELS,
    augment,
    batch,
    batch_bounds,
    batch_size,
    client_batches,
    client_choices,
)
from fedmerge.datasets.images import Images, Splits, join
from fedmerge.datasets.loading import fingerprint, label_set, load_dataset, resize
from fedmerge.datasets.noise import with_noise

__all__ = [
    "CPU_PIXELS",
    "CROP_PADDING",
    "PIXELS",
    "Images",
    "Splits",
    "augment",
    "batch",
    "batch_bounds",
    "batch_size",
    "client_batches",
    "client_choices",
    "fingerprint",
    "join",
    "label_set",
    "load_dataset",
    "resize",
    "with_noise",
]
