"""Networks: `python models.py --download resnet18` fetches the ImageNet weights that `--pretrained` starts from.

They are in fedmerge/networks/.
"""

import argparse

from fedmerge.errors import InputError
from fedmerge.networks import *  # noqa: F403
from fedmerge.networks.weights import pretrained_folder, published_weights
from fedmerge.registry import Names, having, said


def main():
    parser = argparse.ArgumentParser(description="Fetch the published ImageNet weights for --pretrained.")
    able = having("model_name", "pretrained")
    parser.add_argument("--download", required=True, metavar="NAME", help=", ".join(able))
    name = parser.parse_args().download
    if not said("model_name", name, "pretrained") or name not in Names("model_name"):
        parser.error(f"--download {name}: is none of {', '.join(able)}")
    try:
        published_weights(name)
    except InputError as error:
        parser.error(str(error))
    source = said("model_name", name, "pretrained")
    print(f"in {pretrained_folder()}" if source.startswith("https:") else f"in {source}")


if __name__ == "__main__":
    main()
