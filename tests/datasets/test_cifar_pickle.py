"""Pickles of CIFAR batches, as published and as pickle writes them today, and programs that want something else."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from cifar_files import Python2Pickler, batch, pickled

from fedmerge.datasets import cifar, cifar_pickle
from fedmerge.errors import InputError

WHOLE = batch(3, 7) | {b"batch_label": b"testing batch 1 of 1", b"filenames": [b"a.png", b"b.png", b"c.png"]}


def same(read, expected):
    assert read.keys() == expected.keys()
    assert np.array_equal(read[b"data"], expected[b"data"])
    assert all(read[key] == value for key, value in expected.items() if key != b"data")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_pickle_writes_is_read_as_it_was(protocol, order):
    content = WHOLE | {b"data": np.asarray(WHOLE[b"data"], order=order)}
    same(cifar_pickle.loads(pickle.dumps(content, protocol)), content)


def test_what_python_2_wrote_is_read_as_it_was():
    same(cifar_pickle.loads(pickled(WHOLE, Python2Pickler)), WHOLE)


def test_text_for_keys_will_do():
    content = {key.decode(): value for key, value in WHOLE.items()}
    images, labels = cifar._batch(pickle.dumps(content), "batch", b"labels")
    assert labels.tolist() == WHOLE[b"labels"]
    assert images[2, 1, 3, 4] == WHOLE[b"data"][2, 1024 + 3 * 32 + 4]


def text(value):
    """The step that puts a str on the stack."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


BYTES = b"U\x08" + b"A" * 8
OBJECTS = b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R"
VOID = b"cnumpy\ndtype\n" + text("V8") + b"\x89\x88\x87R"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + b"U\x01b\x87R"
UINT8 = b"cnumpy\ndtype\n" + text("u1") + b"\x89\x88\x87R"
ARRAY = EMPTY + b"(K\x01K\x01K\x08\x86" + UINT8 + b"\x89" + BYTES + b"tb"


def rebuilt(flags):
    """The state that makes a void dtype one of a field of objects, with these flags."""
    fields = b"}" + text("a") + OBJECTS + b"K\x00\x86s"
    return b"(K\x03" + text("|") + b"N" + text("a") + b"\x85" + fields + b"K\x08K\x01" + number(flags) + b"t"


def holding(program):
    """A pickle of a dict with what the program leaves as b"data", and one label."""
    return b"\x80\x02}(U\x04data" + program + b"U\x06labels](K\x01eu."


# A pickle that made NumPy free what bytes of the file point at: a dtype changes under an array that uses it.
UNDER_AN_ARRAY = EMPTY + b"(K\x01K\x01\x85" + VOID + b"q\x01" + rebuilt(0) + b"b\x89" + BYTES + b"tb"
REFUSED = {
    "a dtype rebuilt under an array": (
        holding(UNDER_AN_ARRAY + b"U\x01xh\x01" + rebuilt(63) + b"b"),
        "of the kind 'V8'",
    ),
    "a dtype of uint8 rebuilt": (holding(UINT8 + b"(K\x03" + text("<") + b"NNNK\x08K\x01K\x3ftb"), "changes something"),
    "objects": (holding(OBJECTS), "of the kind 'O8'"),
    "strides": (
        holding(b"cnumpy\nndarray\n(" + number(3000000) + number(3072) + b"\x86" + text("u1") + b"K\x00tR"),
        "calls something otherwise",
    ),
    "more sizes than bytes": (holding(ARRAY.replace(b"K\x08\x86", b"K\x09\x86")), "do not fit"),
    "sizes below 0": (holding(ARRAY.replace(b"K\x01K\x08\x86", number(-1) + number(-8) + b"\x86")), "do not fit"),
    "two arrays": (holding(ARRAY + b"U\x04more" + ARRAY), "more than one array"),
    "an array filled twice": (holding(ARRAY + ARRAY[len(EMPTY) :]), "fills an array twice"),
    "an array never filled": (holding(EMPTY), "no data"),
    "an array in a list": (holding(b"]" + ARRAY + b"a"), "something else than numbers and text"),
    "a list in a list": (holding(b"]]a"), "something else than numbers and text"),
    "a list in itself": (holding(b"]q\x01h\x01a"), "something else than numbers and text"),
    "a dict in the dict": (holding(b"}"), "a dict holds something else"),
    "a list in a tuple": (holding(b"]\x85"), "a tuple holds"),
    "a number for a key": (b"\x80\x02}K\x01K\x01s.", "a key that is no text"),
    "floats": (holding(b"G" + bytes(8)), "the step BINFLOAT"),
    "an extension": (holding(b"\x82\x01"), "the step EXT1"),
    "an object": (holding(b"cnumpy\nndarray\n)\x81"), "the step EMPTY_TUPLE"),
    "a persistent one": (holding(b"K\x01Q"), "the step BINPERSID"),
    "a name made of words": (holding(text("os") + text("system") + b"\x93"), r"wants to call os\.system"),
    "a name that clears the screen": (holding(text("os") + text("\x1b[2J") + b"\x93"), r"call 'os\.\\x1b\[2J'"),
    "nothing on the stack": (b"\x80\x02a.", "takes what is not there"),
    "from below a mark": (b"\x80\x02](K\x01(a.", "takes what is not there"),
    "no mark": (b"\x80\x02]K\x01e.", "a mark that is not there"),
    "a place that takes gigabytes in a list": (holding(b"r" + struct.pack("<I", 2**31)), "no batch comes to"),
    "nothing memorised": (holding(b"h\x07"), "did not memorise"),
    "two values": (b"\x80\x02}}.", "does not hold one dict"),
    "no end": (holding(ARRAY)[:-1], "before seeing STOP"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_wants_more_is_refused_in_one_line(kind):
    blob, why = REFUSED[kind]
    with pytest.raises(InputError, match=why) as caught:
        cifar._batch(blob, "batch", b"labels")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_length_beyond_the_file_takes_no_memory():
    tracemalloc.start()
    for step in (
        b"B" + struct.pack("<I", 2**32 - 1),
        b"\x8e" + struct.pack("<Q", 2**62),
        b"T" + struct.pack("<i", 2**31 - 1),
    ):
        with pytest.raises(InputError, match="only 10 remain"):
            cifar._batch(b"\x80\x05}" + step + b"0123456789", "batch", b"labels")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_program_of_endless_steps_is_left_early(monkeypatch):
    monkeypatch.setattr(cifar_pickle, "MAX_STEPS", 50)
    with pytest.raises(InputError, match="more than 50 steps"):
        cifar._batch(b"\x80\x02](" + b"K\x01" * 100 + b"e.", "batch", b"labels")
