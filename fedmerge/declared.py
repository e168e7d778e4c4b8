"""Mistakes of those who write components: each is one line, with file and line, before it costs a run."""

import difflib
import inspect
from collections.abc import Callable

from fedmerge.errors import InputError


def mistake(component, text: str) -> InputError:
    """Return the InputError which says what is wrong with a class, a function or an object, and where that is."""
    component = inspect.unwrap(component)  # of a member, its family
    component = component if inspect.isclass(component) or inspect.isroutine(component) else type(component)
    name = getattr(component, "__qualname__", repr(component))
    try:
        place = f"{inspect.getsourcefile(component)}: line {inspect.getsourcelines(component)[1]}: "
    except (OSError, TypeError):  # typed into a console
        place = ""
    return InputError(f"{place}{name}: {text}")


def check_class(cls, base: type) -> None:
    """Raise InputError unless `cls` is a component as its shelf's `base` describes them.

    It derives from `base`, tuples of names are tuples of names, and hooks take what they are called with.
    """
    if not inspect.isclass(cls) or not issubclass(cls, base):
        raise mistake(cls, f"must be a class derived from {base.__name__}")
    _check_spelling(cls, base)
    for name in dir(base):
        there, here = inspect.getattr_static(base, name), inspect.getattr_static(cls, name)
        if here is there:
            continue
        if isinstance(there, tuple) and not is_names(here):
            raise mistake(cls, f"{name} = {here!r} is no tuple of names, such as ('control',)")
        if name in base.optional_hooks:
            check_arguments(here, ("self", *base.optional_hooks[name]))
        elif inspect.isfunction(there) and (not name.startswith("_") or name == "__call__"):
            check_arguments(here, inspect.signature(there).parameters)


def _check_spelling(cls, base):
    """Raise InputError for a method that is nearly called like one of the base's: nobody would call it."""
    hooks = [*base.optional_hooks, *(name for name, value in inspect.getmembers(base) if inspect.isfunction(value))]
    hooks = [name for name in hooks if not name.startswith("_")]
    for name, value in vars(cls).items():
        if inspect.isfunction(value) and not name.startswith("_") and name not in hooks:
            near = difflib.get_close_matches(name, hooks, n=1, cutoff=0.85)
            if near:
                raise mistake(value, f"did you mean {near[0]}? Nothing here calls {name}; begin a helper's name with _")


def is_names(value) -> bool:
    """Tell whether it is a tuple of names, each there once."""
    named = isinstance(value, tuple) and all(isinstance(name, str) and name.isidentifier() for name in value)
    return named and len(set(value)) == len(value)


def check_arguments(function: Callable, arguments, options=()) -> None:
    """Raise InputError unless `function` can be called with these `arguments`, by position, and `options`, by name.

    What is optional among `arguments`, Parameters of a signature, need not be taken.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise mistake(function, "must be a function") from None
    needed = [name for name in arguments if not _is_optional(arguments, name)]
    try:
        signature.bind(*needed, **dict.fromkeys(options))
    except TypeError as error:
        taken = ", ".join([*needed, *options])
        raise mistake(function, f"is called with ({taken}): {error}") from None
    _check_order(function, signature, needed)


def _check_order(function, signature, needed):
    """Raise InputError if the function has the name of one argument at the place of another: they are swapped."""
    there = [name for name, one in signature.parameters.items() if one.kind is not one.KEYWORD_ONLY]
    for wanted, name in zip(needed, there, strict=False):
        if name != wanted and name in needed:
            raise mistake(
                function, f"is called with ({', '.join(needed)}), by position: {name} stands where {wanted} is"
            )


def _is_optional(arguments, name):
    if not hasattr(arguments, "keys"):
        return False
    parameter = arguments[name]
    return parameter.default is not parameter.empty or parameter.kind in (
        parameter.VAR_KEYWORD,
        parameter.VAR_POSITIONAL,
    )


def check_vector(vector, like, length: int, component, what: str):
    """Return the vector that a component made; raise InputError unless it is [length] and of the dtype of `like`.

    what: in words, what it is.
    """
    if getattr(vector, "dtype", None) != like.dtype or tuple(getattr(vector, "shape", ())) != (length,):
        wanted = f"{str(like.dtype).removeprefix('torch.')} [{length}]"
        raise mistake(component, f"{what} is {described(vector)}, not {wanted}")
    return vector


def described(value):
    """Return in words what a value is."""
    if not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    shape = list(getattr(value, "shape", ()))
    kind = "NumPy's " if type(value).__module__.partition(".")[0] == "numpy" else ""
    return f"{kind}{str(value.dtype).removeprefix('torch.')} {shape}"
