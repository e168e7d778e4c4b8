"""Datasets as tensors, and the batches clients train on.

How files are read is in readers.py, what `python data.py` does is in dataset_tools.py.
"""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

import readers
from utils import InputError, generator, reason

CROP_PADDING = 4  # pixels on each side


@dataclass(frozen=True)
class Images:
    """Labelled images on one device: images uint8 [N, C, H, W], labels int64 [N], and perhaps domains int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    domains: torch.Tensor | None = None

    def __len__(self):
        return len(self.labels)

    def _each(self, change):
        return Images(*(None if t is None else change(t) for t in (self.images, self.labels, self.domains)))

    def __getitem__(self, index):
        return self._each(lambda tensor: tensor[index])

    def to(self, device):
        return self._each(lambda tensor: tensor.to(device))


def join(parts):
    """Return the Images of several as one."""
    columns = zip(*((part.images, part.labels, part.domains) for part in parts), strict=True)
    return Images(*(None if column[0] is None else torch.cat(column) for column in columns))


@dataclass(frozen=True)
class Splits:
    """A dataset, ready to train on: three disjoint sets; mean and deviation [C] of the training images / 255."""

    train: Images
    val: Images
    test: Images
    n_classes: int
    mean: torch.Tensor
    std: torch.Tensor
    domains: tuple = ()  # names of the domains that the images' `domains` number
    fingerprint: str = ""  # tells whether two runs read the same images and labels

    def to(self, device):
        moved = {name: getattr(self, name).to(device) for name in ("train", "val", "test", "mean", "std")}
        return replace(self, **moved)

    @cached_property
    def _affine(self):
        return (1 / (255 * self.std))[:, None, None], (-self.mean / self.std)[:, None, None]

    def normalise(self, images):
        """Return uint8 images [B, C, H, W] as float32 of mean 0 and deviation 1, in channels_last memory."""
        scale, shift = self._affine
        return images.to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)


def label_set(dataset):
    """Return the name of the classes of a dataset: a model's last layer is worth keeping only for the same ones."""
    return {"CIFAR10T": "CIFAR10", "DIGITSA": "DIGITS", "DIGITSB": "DIGITS"}.get(dataset, dataset)


def resize(images, size):
    """Return uint8 images [N, C, H, W] as [N, C, size, size], by antialiased bilinear interpolation."""
    parts = images.split(1024)  # the float copies of one part at a time
    parts = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in parts]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def load_dataset(name, root, seed, image_size=None, shift="label"):
    """Return the Splits of `name`, its files under `root`; validation is 10 % of the training set, by seed.

    image_size: pixels to which the images are resized, if they have another size. shift: "feature" for a dataset of
    several domains. Raises InputError if the files are not there or not what they should be.
    """
    if name in DATASETS:
        train, test, n_classes, *domains = DATASETS[name](Path(root), seed)
    else:
        train, test, n_classes, *domains = load_folder(Path(root) / name, image_size or FOLDER_SIZE)
    domains = domains[0] if domains else ()
    for part, images in (("training", train), ("test", test)):
        if not len(images):
            raise InputError(f"{name} under {root} has no {part} images")
        if images.labels.min() < 0 or images.labels.max() >= n_classes:
            raise InputError(f"{name} under {root} has {part} labels outside 0..{n_classes - 1}")
    if len(train) < 2:
        raise InputError(f"{name} under {root} has one training image: there is none for validation")
    fingerprint = _fingerprint(train, test)
    if image_size and image_size != train.images.shape[-1]:
        train, test = (replace(part, images=resize(part.images, image_size)) for part in (train, test))
    order = torch.randperm(len(train), generator=generator(seed, "validation"))
    n_val = max(1, len(train) // 10)
    parts = [train[order[n_val:]], train[order[:n_val]], test]
    if shift == "feature" and name == "DIGITS":
        parts, domains = [in_all_domains(part, number) for number, part in enumerate(parts)], tuple(DIGIT_DOMAINS)
    if shift == "feature":
        _check_domains(name, root, domains, parts)
    return Splits(*parts, n_classes, *_mean_std(parts[0].images), domains, fingerprint)


def _check_domains(name, root, domains, parts):
    """Raise InputError unless there are several domains, each with images to train and to test on."""
    if len(domains) < 2:
        raise InputError(f"--shift feature: {name} has one domain; DIGITS has several, and so may a folder in {root}")
    for kind, part in (("training", parts[0]), ("test", parts[2])):
        for number, domain in enumerate(domains):
            if not (part.domains == number).any():
                raise InputError(
                    f"--shift feature: the domain {domain} of {name} has no {kind} image: a class needs two images for "
                    "one to be tested on, and a tenth of the others is for validation; add images, or --shift label"
                )


def _fingerprint(*parts):
    """Return the CRC-32 of the images and labels of several Images, as text."""
    crc = 0
    for part in parts:
        for tensor in (part.images, part.labels):
            crc = zlib.crc32(tensor.contiguous().numpy(), crc)
    return f"{crc:08x}"


def _mean_std(images):
    """Return mean and deviation [C] of uint8 images [N, C, H, W] / 255, from a count of each value."""
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.transpose(0, 1)]).double()
    counts /= counts.sum(1, keepdim=True)
    values = torch.arange(256) / 255.0
    mean = counts @ values.double()
    std = (counts @ values.double().square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-3).float()  # a channel of one colour would divide by zero


# --------------------------------------------------------------------------------------------------------------------
# DIGITS


def load_digits(root, seed):
    """scikit-learn's bundled 1,797 handwritten 8x8 digits; the test set is a stratified 20 %, whatever the seed."""
    return *_split_digits(_bundled_digits()), 10


def load_digits_a(root, seed):
    """The digits of half of the WRITERS, to train a start on for the other half."""
    return *_split_digits(_of_writers(range(0, WRITERS, 2))), 10, tuple(f"writer {w}" for w in range(0, WRITERS, 2))


def load_digits_b(root, seed):
    """The digits of the other half, each writer a domain."""
    return *_split_digits(_of_writers(range(1, WRITERS, 2))), 10, tuple(f"writer {w}" for w in range(1, WRITERS, 2))


WRITERS = 10  # made up: the bundled digits do not tell who wrote them


def _bundled_digits():
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    images = torch.from_numpy(digits.images * 15).to(torch.uint8).unsqueeze(1)  # 17 grey levels, 0..240
    return Images(images, torch.from_numpy(digits.target).long())


def _split_digits(digits):
    from sklearn.model_selection import train_test_split

    labels = digits.labels
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return digits[train], digits[test]


def _of_writers(wanted):
    """Return the digits of the `wanted` of WRITERS, numbered from 0 in `domains`.

    Writers are clusters by style: each class is clustered by k-means, and the clusters of a class go to the writers in
    the order of their mean along the direction in which images of one class differ most: their slant, mostly.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    digits = _bundled_digits()
    pixels = digits.images.flatten(1).double().numpy()
    classes = [(digits.labels == c).numpy() for c in range(10)]
    for own in classes:
        pixels[own] -= pixels[own].mean(0)
    style = PCA(1, svd_solver="full").fit_transform(pixels)[:, 0]
    writers = torch.empty(len(digits), dtype=torch.int64)
    for own in classes:
        clusters = KMeans(WRITERS, n_init=4, random_state=0).fit_predict(pixels[own])
        means = torch.tensor([style[own][clusters == k].mean() for k in range(WRITERS)])
        writers[torch.from_numpy(own)] = means.argsort().argsort()[torch.from_numpy(clusters).long()]
    number = torch.full((WRITERS,), -1).index_copy(0, torch.tensor(wanted), torch.arange(len(wanted)))
    whole = replace(digits, domains=number[writers])
    return whole[whole.domains >= 0]


# What becomes of a digit, uint8 [N, 1, H, W] of 0 to 240, in each domain; rng is a CPU generator.
DIGIT_DOMAINS = {
    "clean": lambda images, rng: images,
    "inverted": lambda images, rng: 240 - images,
    "blurred": lambda images, rng: F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False).round().byte(),
    "rotated": lambda images, rng: images.rot90(1, (2, 3)),
    "noisy": lambda images, rng: (images + 60 * torch.randn(images.shape, generator=rng)).round().clamp(0, 240).byte(),
}


def in_all_domains(part, number):
    """Return the Images once in each of DIGIT_DOMAINS. The noise depends on the part's `number`, on no seed."""
    n, rng = len(part), generator(0, "noisy digits", number)
    images = torch.cat([change(part.images, rng) for change in DIGIT_DOMAINS.values()])
    k = len(DIGIT_DOMAINS)
    return Images(images, part.labels.repeat(k), torch.arange(k).repeat_interleave(n))


# --------------------------------------------------------------------------------------------------------------------
# Folders of images

FOLDER_SIZE = 32  # pixels, unless --image_size says otherwise
FOLDER_TEST = 0.2  # share of every class of every domain that is tested on


def load_folder(folder, size):
    """Return (training Images, test Images, number of classes, domains) of folder/<domain>/<class>/*.png or jpg.

    The test set is a fifth of every class of every domain, at least one image unless there is only one, the same
    whatever the seed. Classes are those of all domains together, in order of their names.
    """
    images, labels, domains, classes, names = readers.read_folder(folder, size)
    rng, tested = generator(0, "test of a folder"), torch.zeros(len(labels), dtype=torch.bool)
    for group in (domains * len(classes) + labels).unique():
        members = (domains * len(classes) + labels == group).nonzero().flatten()
        if len(members) > 1:
            n = max(1, round(FOLDER_TEST * len(members)))
            tested[members[torch.randperm(len(members), generator=rng)[:n]]] = True
    whole = Images(images, labels, domains)
    return whole[~tested], whole[tested], len(classes), names


# --------------------------------------------------------------------------------------------------------------------
# Published files


def load_cifar10(root, seed):
    """The published python version of CIFAR-10, from its folder or from its tar.gz (Krizhevsky 2009)."""
    return *_as_images(readers.read_cifar(root, "CIFAR10")), 10


def load_cifar100(root, seed):
    """The published python version of CIFAR-100, with its 100 fine classes (Krizhevsky 2009)."""
    return *_as_images(readers.read_cifar(root, "CIFAR100")), 100


def load_fashion_mnist(root, seed):
    """The published IDX files of FashionMNIST, 28x28 in grey (Xiao, Rasul and Vollgraf 2017)."""
    return *_as_images(readers.read_idx(root, "FashionMNIST")), 10


def _as_images(parts):
    return (Images(*parts[part]) for part in ("train", "test"))


def load_cifar10_thousand(root, seed):
    """1,000 training samples of CIFAR-10, by seed, with its whole test set: for trying things out."""
    train, test, n_classes = load_cifar10(root, seed)
    return train[torch.randperm(len(train), generator=generator(seed, "subset"))[:1000]], test, n_classes


# --------------------------------------------------------------------------------------------------------------------
# Tiny-ImageNet


def load_tiny_imagenet(root, seed):
    """Tiny-ImageNet-200 from the caches that import_TIN.py writes; the published validation set is the test set."""
    train, test = (_read_cache(root / f"tinyimagenet_{part}_cache.pt", root) for part in ("train", "val"))
    if train["wnids"] != test["wnids"]:
        raise InputError(
            f"the two Tiny-ImageNet caches in {root} have different classes: run 'python import_TIN.py' again"
        )
    return *(Images(part["images"], part["labels"]) for part in (train, test)), len(train["wnids"])


def _read_cache(path, root):
    if not path.is_file():
        raise InputError(
            f"no {path}: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in {root} and run "
            f"'python import_TIN.py --data_root {root}', or use --dataset DIGITS, which needs no download"
        )
    try:
        cache = torch.load(path, map_location="cpu", weights_only=True)
        images, labels, wnids = cache["images"], cache["labels"], cache["wnids"]
        good = images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape[1:] == (3, 64, 64)
        if not good or len(images) != len(labels) or not isinstance(wnids, list):
            raise ValueError(
                f"images {images.dtype} {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
            )
    except Exception as error:  # torch.load raises a different kind for each way a file can be bad
        raise InputError(f"{path}: not a cache of import_TIN.py ({reason(error)})") from None
    return cache


# To add a dataset, write a function (root, seed) -> (training Images, test Images, number of classes) and name it here.
DATASETS = {
    "CIFAR10": load_cifar10,
    "CIFAR10T": load_cifar10_thousand,
    "CIFAR100": load_cifar100,
    "FashionMNIST": load_fashion_mnist,
    "TinyImageNet": load_tiny_imagenet,
    "DIGITS": load_digits,
    "DIGITSA": load_digits_a,
    "DIGITSB": load_digits_b,
}


# --------------------------------------------------------------------------------------------------------------------
# Batches


def batch_bounds(n, batch_size):
    """Return the [(begin, end)] of the batches of `n` samples; a single one left over joins the batch before it.

    BatchNorm has no variance to divide by in a batch of one.
    """
    cuts = list(range(0, n, batch_size))
    if batch_size > 1 and len(cuts) > 1 and n - cuts[-1] == 1:
        cuts.pop()
    return list(zip(cuts, [*cuts[1:], n], strict=True))


def augment(images, draws):
    """Crop images [B, C, H, W] at random after padding with CROP_PADDING black pixels, and flip them at random.

    draws int64 [B, 3]: rows and columns to move by, 0..2 * CROP_PADDING, and 1 to flip; one row for each sample.
    """
    b, c, h, w = images.shape
    at = images.device
    down, right, flip = draws[:, 0, None], draws[:, 1, None], draws[:, 2, None] == 1
    rows = down + torch.arange(h, device=at)  # [B, H]
    columns = right + torch.where(flip, torch.arange(w - 1, -1, -1, device=at), torch.arange(w, device=at))  # [B, W]
    padded = F.pad(images, [CROP_PADDING] * 4)
    which = torch.arange(b, device=at)[:, None, None, None]
    return padded[which, torch.arange(c, device=at)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def client_choices(splits, indices, batch_size, epochs, rng, augmented=False):
    """Yield which samples are in each batch of `epochs` shuffled passes through one client's, and how they are moved.

    That is int64 [B] into splits.train, and int64 [B, 3] as `augment` has it, or None. indices int64 [n]: the client's;
    rng: the CPU generator of this client and round. All draws are made and moved to the data's device before the first
    batch, so that the steps wait for nothing.
    """
    n, device = len(indices), splits.train.labels.device
    orders = torch.stack([torch.randperm(n, generator=rng) for _ in range(epochs)])
    orders = indices.cpu()[orders].to(device)
    if augmented:
        sides = torch.tensor([2 * CROP_PADDING + 1, 2 * CROP_PADDING + 1, 2])
        draws = (torch.rand(epochs, n, 3, generator=rng) * sides).long().to(device)
    for epoch in range(epochs):
        for begin, end in batch_bounds(n, batch_size):
            yield orders[epoch, begin:end], draws[epoch, begin:end] if augmented else None


def batch(splits, chosen, draws=None):
    """Return (x float32 [B, C, H, W], y int64 [B]) of what client_choices yields."""
    x = splits.train.images[chosen]
    if draws is not None:
        x = augment(x, draws)
    return splits.normalise(x), splits.train.labels[chosen]


def client_batches(*choices, **how):
    """Yield (x, y) of each batch; takes what `client_choices` takes."""
    splits = choices[0]
    return (batch(splits, chosen, draws) for chosen, draws in client_choices(*choices, **how))


if __name__ == "__main__":
    from dataset_tools import main

    main()
