"""Datasets: `python data.py --download CIFAR10`, and `--labels` and `--stamp` for splits of one's own.

What a dataset is made of is in fedmerge/datasets/, how it is split among the clients in fedmerge/partitions/.
"""

from fedmerge.datasets import *  # noqa: F403

if __name__ == "__main__":
    from fedmerge.datasets.tools import main

    main()
