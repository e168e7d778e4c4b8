"""Networks: `python models.py --download resnet18` fetches the ImageNet weights that `--pretrained` starts from.

They are in fedmerge/networks/.
"""

from fedmerge.networks import *  # noqa: F403
from fedmerge.networks.weights import main

if __name__ == "__main__":
    main()
