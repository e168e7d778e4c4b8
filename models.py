"""Networks: `python models.py --download resnet18` fetches the ImageNet weights that `--pretrained` starts from.

They are in fedmerge/networks/.
"""

import argparse

from fedmerge.errors import InputError
from fedmerge.networks import *  # noqa: F403
from fedmerge.networks.weights import fetch_pretrained, pretrained_folder
from fedmerge.registry import having


def main():
    parser = argparse.ArgumentParser(description="Fetch the published ImageNet weights for --pretrained.")
    parser.add_argument("--download", required=True, choices=having("model_name", "pretrained"))
    try:
        fetch_pretrained(parser.parse_args().download)
    except InputError as error:
        parser.error(str(error))
    print(f"in {pretrained_folder()}")


if __name__ == "__main__":
    main()
