"""What arrives at the server in a round, and how it is merged."""

from fedmerge.merging.aggregate import MEANS, Arrived, Sums, add_to, all_of
from fedmerge.merging.stitching import TINY, Stitcher

__all__ = ["MEANS", "TINY", "Arrived", "Stitcher", "Sums", "add_to", "all_of"]
