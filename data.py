# PYTHON_ARGCOMPLETE_OK
"""Datasets: fetch a published one, import one of another library, list the labels of one, or make a split by hand one
for a dataset.

    python data.py --download CIFAR10
    python data.py --import torchvision:SVHN
    python data.py --import hf:flwrlabs/femnist --as femnist
    python data.py --labels CIFAR10 --seed 0 --output labels.csv
    python data.py --stamp split.json --dataset CIFAR10 --seed 0

Only these three use the network. What a dataset is made of is in fedmerge/datasets/, how it is split among the clients
in fedmerge/partitions/.
"""

import argparse
import hashlib
import os
import sys
import urllib.request
from pathlib import Path

from tqdm import tqdm

from fedmerge import files, partitions, saving
from fedmerge.config.completion import complete
from fedmerge.config.kinds import KINDS
from fedmerge.config.own_data import IMPORTED
from fedmerge.datasets import *  # noqa: F403
from fedmerge.datasets import load_dataset
from fedmerge.datasets.importing import import_dataset
from fedmerge.errors import InputError
from fedmerge.registry import having, said


def download(name, root):
    """Fetch the published files of `name` into the folder `root`, and check their MD5. Raises InputError."""
    published = said("dataset", name, "download")
    try:
        if isinstance(published, str):
            import torchvision

            getattr(torchvision.datasets, published)(root, download=True)
        else:
            for file, (url, md5) in published.items():
                fetch(url, Path(root, file), md5)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name} could not be fetched: {error}") from None
    then = said("dataset", name, "then")
    print(f"{name} is in {root}" + (f"; now run '{then} --data_root {root}'" if then else ""))


def fetch(url, path, md5):
    """Write what is at the `url` to the Path `path`, unless it is there. Raises OSError if its MD5 is another."""
    if path.exists():
        with files.open_regular(path, files.ARCHIVE) as there:
            if hashlib.file_digest(there, "md5").hexdigest() == md5:
                return
    digest, n, bar = hashlib.md5(), 0, tqdm(desc=path.name, unit="B", unit_scale=True, disable=None)
    with urllib.request.urlopen(url) as response, saving.replacing(path) as file, bar:
        while n <= files.ARCHIVE and (block := response.read(2**20)):
            file.write(block)
            digest.update(block)
            n += len(block)
            bar.update(len(block))
        if digest.hexdigest() != md5:
            raise OSError(f"{url} is another file than the published one: its MD5 is {digest.hexdigest()}, not {md5}")


def labels_csv(splits):
    """Return the CSV of the training images in their order: position, label and, where there are any, domain."""
    train = splits.train
    rows = [{"position": i, "label": label} for i, label in enumerate(train.labels.tolist())]
    if train.domains is None:
        return saving.csv_text(["position", "label"], rows)
    for row, domain in zip(rows, train.domains.tolist(), strict=True):
        row["domain"] = splits.domains[domain]
    return saving.csv_text(["position", "label", "domain"], rows)


def stamp(path, splits, args):
    """Write into the split file at `path` for which labels it was made. Raises InputError if it does not fit these."""
    made_for = {"dataset": args.dataset, "seed": args.seed, "shift": args.shift}
    labels = splits.train.labels
    parts = partitions.stamp_partition(path, labels, made_for)
    table = partitions.histograms(labels, parts, splits.n_classes)
    words = partitions.described(table, len(labels))
    print(f"{path}, for {' '.join(f'--{name} {value}' for name, value in made_for.items())}: {words}")


def build_parser():
    parser = argparse.ArgumentParser(prog="data.py", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--download", choices=having("dataset", "download"), help="fetch it, check its MD5")
    what.add_argument(
        "--import",
        dest="source",
        nargs="+",
        metavar=("KIND:NAME", "OPTION=VALUE"),
        help=f"write it as NAME.npz, which --dataset NAME reads; KIND: {', '.join(IMPORTED)}; of its options, train, "
        "test, image, label and domain name parts and columns, the others are the library's",
    )
    what.add_argument("--labels", metavar="NAME", help="write position and label of its training images as CSV")
    what.add_argument("--stamp", metavar="FILE", help="check a split made by hand and say in it for which data it is")
    parser.add_argument("--as", dest="name", metavar="NAME", help="of --import [the last part of its name]")
    parser.add_argument("--image_size", type=KINDS["count"], metavar="N", help="of --import: pixels of all its images")
    parser.add_argument("--dataset", help="of --stamp")
    parser.add_argument("--seed", type=KINDS["integer"], default=0, help="it draws the validation images, cut off [0]")
    parser.add_argument("--shift", choices=["label", "feature"], default="label", help="as of fedalg.py [label]")
    parser.add_argument(
        "--validation",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as of fedalg.py: without, no image is cut off",
    )
    parser.add_argument("--data_root", default="./data", help="folder of the datasets [./data]")
    parser.add_argument("--output", metavar="FILE", help="of --labels [standard output]")
    return parser


def do(args):
    """Do what the command line asks for. Raises InputError and OSError."""
    if (args.name or args.image_size) and not args.source:
        raise InputError("--as and --image_size are of --import")
    if args.download:
        return download(args.download, args.data_root)
    if args.source:
        given, *options = args.source
        if any("=" not in option for option in options):
            raise InputError(f"--import {given}: after it come options, NAME=VALUE, not {' '.join(options)}")
        options = dict(option.split("=", 1) for option in options)
        return print(import_dataset(given, options, args.data_root, args.name, args.image_size))
    if args.stamp and not args.dataset:
        raise InputError("--stamp needs --dataset")
    args.dataset = args.dataset or args.labels
    splits = load_dataset(args.dataset, args.data_root, args.seed, shift=args.shift, validation=args.validation)
    if args.stamp:
        stamp(args.stamp.replace("{seed}", str(args.seed)), splits, args)
    elif args.output:
        saving.write_atomic(args.output, labels_csv(splits))
    else:
        sys.stdout.write(labels_csv(splits))
        sys.stdout.flush()


def main(argv=None):
    args = complete(build_parser()).parse_args(argv)
    try:
        do(args)
    except BrokenPipeError:  # whoever read the CSV has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
