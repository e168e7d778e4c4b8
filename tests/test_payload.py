"""The byte counts, by hand."""

import pytest

import payload
from models import Layout

BIG = Layout(names=("w",), sizes=(1001,), n_trainable=1001, dim=1011)  # 10 buffers


@pytest.mark.parametrize(
    ("kept", "positions"),
    [
        (1001, 0),  # everything: no positions
        (1000, 126),  # a bitmap of 1001 bits
        (200, 126),
        (32, 126),
        (31, 124),  # 31 indices of 4 bytes are cheaper
        (1, 4),
        (0, 0),
    ],
)
def test_upload(kept, positions):
    assert payload.upload_bytes(kept, BIG) == 4 * kept + positions + 4 * 10


def test_download_is_the_whole_model():
    assert payload.download_bytes(BIG) == 4 * 1011
