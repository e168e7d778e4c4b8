"""Files of settings: of flags, one a line; TOML, in sections or without; and the record of a run. Needs no torch."""

import json
import os
import re
import shlex
import tomllib

from fedmerge import files, saving
from fedmerge.config.options import ALIASES, OPTIONS, all_options
from fedmerge.errors import InputError, reason

OF_MACHINE = ("machine", "files")  # groups of options that tell of where a run was, not of what it is


def words_in(path):
    """Return the words with which somebody types what is in a file of settings: .toml, .json, or else of flags.

    Raises InputError, which names the file.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending == ".toml":
        return typed(_of_toml(path), path)
    if ending == ".json":
        return typed(_of_record(path), path)
    lines = read_flags(path)
    for number, words in lines:
        if not words[0].startswith("--"):
            raise InputError(f"{path}: line {number}: not a flag, such as --lr 0.01: {' '.join(words)!r}")
    return [word for _, words in lines for word in words]


def typed(settings, path):
    """Return the words with which somebody types settings {name: value}; None is what is not typed.

    Raises InputError, which names the file at `path`, for a truth value where none belongs. What is no setting is typed
    as one, and refused as if it had been.
    """
    words = []
    for name, value in settings.items():
        option = all_options().get(ALIASES.get(name, name))
        if isinstance(value, bool):
            if option is not None and option.kind != "flag":
                raise InputError(f"{path}: {name} takes a value, not {str(value).lower()}")
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def _of_toml(path):
    """Return {name: value} of a TOML file, whose sections are there for readers only."""
    try:
        content = tomllib.loads(files.read_text(os.path.abspath(path), files.LIST))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no TOML ({reason(error)})") from None
    found = {}
    for name, value in content.items():
        for key, one in value.items() if isinstance(value, dict) else [(name, value)]:
            if not isinstance(one, str | int | float | bool):
                raise InputError(f"{path}: {key} is no number, text, true or false")
            if key in found:
                raise InputError(f"{path}: {key} is there twice")
            found[key] = one
    return found


def _of_record(path):
    """Return {name: value} of the settings in the record of a run that change its result."""
    record = saving.read_json(path)
    if record is None:
        raise InputError(f"{path}: there is no such file")
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: is no record of a run: it has no settings")
    elsewhere = {option.name for group in OF_MACHINE for option in OPTIONS[group]}
    return {name: value for name, value in settings.items() if name not in elsewhere}


def write_toml(path, title, settings):
    """Write settings {name: value} as TOML, in the sections of --help, but None and what tells of the machine.

    Raises InputError if something else is there.
    """
    groups = {option.name: group for group, options in OPTIONS.items() for option in options}
    sections = {}
    for name, value in settings.items():
        group = groups.get(name, "components")
        if value is not None and group not in OF_MACHINE:
            sections.setdefault(group, []).append(f"{name} = {json.dumps(value)}")
    lines = [f"# {title}"]
    for group, entries in sections.items():
        lines += ["", f'["{group}"]', *entries]
    text = "\n".join(lines) + "\n"
    if os.path.exists(path) and files.read_text(path, files.LIST) != text:
        raise InputError(f"{path}: is there already, and is another: another name")
    saving.write_atomic(path, text)


def read_flags(path):
    """Return [(line number, words)] of a file of flags, for the lines that have any: see `split_words`.

    Raises InputError that names the file, and the line.
    """
    where = os.path.abspath(path)
    try:
        text = files.read_text(where, files.LIST).removeprefix("\ufeff")
    except FileNotFoundError:
        raise InputError(f"{where}: there is no such file") from None
    lines = re.split("\r\n|\r|\n", text)  # any of them ends a line
    split = [(number, split_words(line, f"{path}: line {number}")) for number, line in enumerate(lines, 1)]
    return [(number, words) for number, words in split if words]


def split_words(text, where):
    """Return the words of `text`, a list of str, quoted as in a shell; a # begins a comment, nothing is replaced.

    Raises InputError, which says `where`.
    """
    if "\0" in text:
        raise InputError(f"{where}: holds a NUL character")
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise InputError(f"{where}: {str(error).lower()}: {text.strip()!r}") from None
