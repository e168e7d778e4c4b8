"""What of an update is sent, and what becomes of the rest."""

from fedmerge.compressors.error_feedback import ErrorFeedback
from fedmerge.compressors.largest import CHUNK, LARGE, PLACES, SAMPLE, SIGNLESS, choose_largest, masked, top_k_mask
from fedmerge.compressors.localiser import Localiser

__all__ = [
    "CHUNK",
    "LARGE",
    "PLACES",
    "SAMPLE",
    "SIGNLESS",
    "ErrorFeedback",
    "Localiser",
    "choose_largest",
    "masked",
    "top_k_mask",
]
