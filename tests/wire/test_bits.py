"""Numbers of a fixed width as bytes."""

import numpy as np
import pytest

from fedmerge.wire.bits import Reader, field_bytes, pack_fields, unpack_fields


@pytest.mark.parametrize("width", range(29))
def test_fields_of_every_width(width):
    x = np.random.default_rng(width).integers(0, 1 << width, 1003)
    data = pack_fields(x, width)
    reader = Reader(data)
    assert len(data) == field_bytes(1003, width)
    assert unpack_fields(reader, 1003, width).tolist() == x.tolist()
    assert not len(reader.rest())
