"""What crosses the wire between a client and the server, and how many bytes it takes.

The one place that knows sizes: the round loop asks here and nowhere else. Sizes are counted exactly for a plain
encoding, positions and buffers included, in both directions.
"""

VALUE_BYTES = 4  # float32
INDEX_BYTES = 4  # uint32


def upload_bytes(kept, layout):
    """Return the bytes of one client's update that keeps `kept` of its `layout.n_trainable` weights.

    Buffers (BatchNorm statistics) are always sent whole. If every weight is kept no positions are needed; otherwise the
    values kept come with the cheaper of a bitmap over all weights and one index each.
    """
    buffers = VALUE_BYTES * (layout.dim - layout.n_trainable)
    if kept == layout.n_trainable:
        return VALUE_BYTES * kept + buffers
    bitmap = (layout.n_trainable + 7) // 8
    return VALUE_BYTES * kept + min(bitmap, INDEX_BYTES * kept) + buffers


def download_bytes(layout):
    """Return the bytes of the model that a sampled client receives: all its weights and buffers, dense."""
    return VALUE_BYTES * layout.dim
