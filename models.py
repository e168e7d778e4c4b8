"""Networks: `python models.py --download resnet18` fetches the ImageNet weights that `--pretrained` starts from.

They are in fedmerge/networks/.
"""

import argparse

from fedmerge.errors import InputError
from fedmerge.networks import *  # noqa: F403
from fedmerge.networks.weights import pretrained_folder, published_weights
from fedmerge.registry import having, said


def main():
    parser = argparse.ArgumentParser(description="Fetch the published ImageNet weights for --pretrained.")
    parser.add_argument("--download", required=True, choices=having("model_name", "pretrained"))
    name = parser.parse_args().download
    try:
        published_weights(name)
    except InputError as error:
        parser.error(str(error))
    source = said("model_name", name, "pretrained")
    print(f"in {pretrained_folder()}" if source.startswith("https:") else f"in {source}")


if __name__ == "__main__":
    main()
