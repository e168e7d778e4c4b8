"""The pickles of CIFAR-10 and CIFAR-100, read without unpickling: a machine that can make nothing but their content.

A pickle is a program, and what runs it (pickle.Unpickler, even with few functions allowed) makes objects that the
program then changes: NumPy's dtypes and arrays trust what they are given, so that bytes of a file become addresses.
Here no object is ever called or changed but lists and the one dict. The batches are what Python 2 wrote with NumPy of
its time (protocol 2), or what pickle.dumps makes of the same today (protocols 2 to 5).
"""

import pickletools
from enum import Enum, auto
from math import prod

import numpy as np

MAX_STEPS = 2**20  # of the program; CIFAR-100's training set has some 400,000


class Name(Enum):
    """What the program may name. These stand for it and can do nothing."""

    RECONSTRUCT = auto()
    FROM_BUFFER = auto()
    NDARRAY = auto()
    DTYPE = auto()
    ENCODE = auto()
    UINT8 = auto()  # what DTYPE makes of its arguments


NAMES = {
    "numpy.core.multiarray _reconstruct": Name.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": Name.RECONSTRUCT,
    "numpy.core.numeric _frombuffer": Name.FROM_BUFFER,
    "numpy._core.numeric _frombuffer": Name.FROM_BUFFER,
    "numpy ndarray": Name.NDARRAY,
    "numpy dtype": Name.DTYPE,
    "_codecs encode": Name.ENCODE,  # how Python 3 writes bytes in protocol 2
}


class _Array:
    """The array: empty when the program makes it, then filled, once."""

    content = None  # uint8, read-only

    def fill(self, data, shape, fortran):
        if self.content is not None:
            raise ValueError("it fills an array twice")
        if not all(type(n) is int and n >= 0 for n in shape) or not 1 <= len(shape) <= 4 or prod(shape) != len(data):
            raise ValueError("the sizes of an array do not fit its bytes")
        self.content = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def loads(blob):
    """Return the dict {bytes or str: int, bytes, str, list of these, or the array} that the bytes of a batch hold.

    There is one array at most, of uint8 and read-only. Raises ValueError for whatever else they hold or want; memory
    is a small multiple of the bytes.
    """
    machine = _Machine()
    for step, (operation, argument, _) in enumerate(pickletools.genops(blob)):
        if step == MAX_STEPS:
            raise ValueError(f"it takes more than {MAX_STEPS} steps")
        if operation.name not in STEPS:
            raise ValueError(f"it has the step {operation.name}, which no batch needs")
        STEPS[operation.name](machine, argument)
    content = machine.pop()
    if type(content) is not dict or machine.stack or machine.marks:
        raise ValueError("it does not hold one dict")
    return {key: value.content if isinstance(value, _Array) else value for key, value in content.items()}


class _Machine:
    """A stack, the places of marks in it, and what was memorised: immutable values, tokens, lists, dicts, _Array."""

    def __init__(self):
        self.stack, self.marks, self.memo, self.array = [], [], {}, None

    def push(self, value):
        self.stack.append(value)

    def pop(self, n=None):
        """Return what is on top, or a list of the `n` topmost; nothing below the last mark is taken."""
        first = len(self.stack) - (1 if n is None else n)
        if first < (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes what is not there")
        taken = self.stack[first:]
        del self.stack[first:]
        return taken[0] if n is None else taken

    def pop_mark(self):
        """Return all above the last mark, and forget that."""
        if not self.marks:
            raise ValueError("it looks for a mark that is not there")
        taken = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def mark(self):
        self.marks.append(len(self.stack))

    def top(self, kind):
        """Return the value on top, which stays there; it is of this type."""
        value = self.pop()
        if type(value) is not kind:
            raise ValueError(f"it takes a {type(value).__name__} for a {kind.__name__}")
        self.push(value)
        return value

    def append(self, values):
        """Put values on the list below them."""
        if not all(type(value) in (int, bytes, str) for value in values):
            raise ValueError("a list holds something else than numbers and text")
        self.top(list).extend(values)

    def set_items(self, values):
        """Put [key, value, key, value, ...] into the dict below them."""
        keys, values = values[::2], values[1::2]
        if len(keys) != len(values) or not all(type(key) in (bytes, str) for key in keys):
            raise ValueError("a dict has a key that is no text")
        if not all(type(value) in (int, bytes, str, list, _Array) for value in values):
            raise ValueError("a dict holds something else than numbers, text, lists of them and an array")
        self.top(dict).update(zip(keys, values, strict=True))

    def make_tuple(self, values):
        """Put a tuple of values on top: arguments of a name, or the sizes of an array among these."""
        if any(type(value) in (list, dict) for value in values):
            raise ValueError("a tuple holds a list or a dict")
        self.push(tuple(values))

    def name(self, words):
        """Put what "module name" stands for on top."""
        if words not in NAMES:
            wanted = words.replace(" ", ".")
            raise ValueError(f"it wants to call {wanted if wanted.isprintable() else ascii(wanted)}"[:120])
        self.push(NAMES[words])

    def name_of_two(self):
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is no text")
        self.name(f"{module} {name}")

    def call(self):
        """Replace a name and a tuple on top by what the name makes of it."""
        match self.pop(2):
            case [Name.ENCODE, (str(text), "latin1")]:
                self.push(text.encode("latin-1"))
            case [Name.DTYPE, ("u1" | b"u1", 0, 1)]:
                self.push(Name.UINT8)
            case [Name.RECONSTRUCT, (Name.NDARRAY, (0,), "b" | b"b")]:
                self.push(self.new_array())
            case [Name.FROM_BUFFER, (bytes(data), Name.UINT8, tuple(shape), "C" | "F" as order)]:
                array = self.new_array()
                array.fill(data, shape, order == "F")
                self.push(array)
            case [Name.DTYPE, (str(kind) | bytes(kind), *_)]:
                raise ValueError(f"it holds numbers of the kind {kind[:20]!r}, not bytes")
            case _:
                raise ValueError("it calls something otherwise than batches do")

    def new_array(self):
        if self.array is not None:
            raise ValueError("it holds more than one array")
        self.array = _Array()
        return self.array

    def build(self):
        """Fill the array below its state on top, or hear once more that bytes are bytes."""
        match self.pop(2):
            case [_Array() as array, (1, tuple(shape), Name.UINT8, bool(fortran), bytes(data))]:
                array.fill(data, shape, fortran)
                self.push(array)
            case [Name.UINT8, (3, "|" | b"|", None, None, None, -1, -1, 0)]:
                self.push(Name.UINT8)
            case _:
                raise ValueError("it changes something otherwise than batches do")

    def memorise(self, place):
        if place >= MAX_STEPS:
            raise ValueError("it memorises at a place that no batch comes to")
        value = self.pop()
        self.push(value)
        self.memo[place] = value

    def recall(self, place):
        if place not in self.memo:
            raise ValueError("it recalls what it did not memorise")
        self.push(self.memo[place])


# What each step of the program does to the machine, given the argument that stands in the program.
STEPS = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda m, text: m.push(text.encode("latin-1"))),  # Python 2's
    "BYTEARRAY8": lambda m, data: m.push(bytes(data)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "MARK": lambda m, _: m.mark(),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "TUPLE1": lambda m, _: m.make_tuple(m.pop(1)),
    "TUPLE2": lambda m, _: m.make_tuple(m.pop(2)),
    "TUPLE3": lambda m, _: m.make_tuple(m.pop(3)),
    "TUPLE": lambda m, _: m.make_tuple(m.pop_mark()),
    "BINPUT": _Machine.memorise,
    "LONG_BINPUT": _Machine.memorise,
    "MEMOIZE": lambda m, _: m.memorise(len(m.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda m, _: m.name_of_two(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
