"""What of an update is sent, and what becomes of the rest.

To add a compressor, put a file here with a class derived from base.Compressor under `@compressor("name", title=...)`.
"""

from fedmerge.compressors.base import Compressor
from fedmerge.compressors.error_feedback import ErrorFeedback
from fedmerge.compressors.largest import CHUNK, choose_largest, masked, top_k_mask

__all__ = ["CHUNK", "Compressor", "ErrorFeedback", "choose_largest", "masked", "top_k_mask"]
