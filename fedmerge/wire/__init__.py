"""What crosses the wire: messages, their exact bytes, and what clients download."""

from fedmerge.wire.crossing import Crossing
from fedmerge.wire.downlink import CatchUp, Downlink, DownlinkSettings
from fedmerge.wire.message import (
    ALL,
    BITMAP,
    CHECKSUM,
    DROPPED,
    HEADER,
    KEPT,
    MAGIC,
    SERVER,
    VERSION,
    Message,
    PayloadError,
    decode,
    dense_bytes,
    encode,
    pack,
    payload_bytes,
    places,
    transmit,
)
from fedmerge.wire.quantization import CODED, FORMATS, PLAIN, Values

__all__ = [
    "ALL",
    "BITMAP",
    "CHECKSUM",
    "CODED",
    "DROPPED",
    "FORMATS",
    "HEADER",
    "KEPT",
    "MAGIC",
    "PLAIN",
    "SERVER",
    "VERSION",
    "CatchUp",
    "Crossing",
    "Downlink",
    "DownlinkSettings",
    "Message",
    "PayloadError",
    "Values",
    "decode",
    "dense_bytes",
    "encode",
    "pack",
    "payload_bytes",
    "places",
    "transmit",
]
