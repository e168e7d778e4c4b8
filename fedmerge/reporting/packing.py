"""Runs put from the files of a folder into the two tables of another, and back: see run_tables.py."""

import gzip
import io
import json
from pathlib import Path

from fedmerge import files, saving
from fedmerge.errors import InputError
from fedmerge.reporting.run_tables import (
    COLUMNS,
    LINES,
    RECORD,
    RECORDS,
    ROUNDS,
    WIDEST,
    RunFiles,
    cells_of,
    is_name,
    lines_of,
    runs_of,
)
from fedmerge.reporting.runs import read_run


def pack(folder, to):
    """Put all runs of a folder of their files into the two tables of the folder `to`; return how many.

    Raises InputError, and writes nothing, if there are tables or files of runs already, a run still goes on, or one of
    the files is not as a run leaves it, so that it would not come back the same, or not be drawn.
    """
    source, to = RunFiles(folder), Path(to)
    _refuse_what_is_there([to / ROUNDS, to / RECORDS, *to.glob("*.json")])
    csvs = {path.name.removesuffix("_metrics.csv") for path in source.folder.glob("*_metrics.csv")}
    for name in csvs - set(source.names):
        raise InputError(f"{source.folder / source.csv(name)}: there is no {name}.json beside it")
    if not source.names:
        raise InputError(f"no run in {source.folder}")
    records, tables = {}, {}
    for name in source.names:
        try:
            records[name], tables[name] = _record_to_pack(source, name), None
            if name in csvs:
                tables[name] = _rounds_to_pack(source, name)
            read_run(source, name)
        except InputError as error:
            raise InputError(f"{source.path(name)}: cannot be packed: {error}") from None
    rounds, lines = _packed(records, tables)
    for text, file in ((rounds, ROUNDS), (lines, RECORDS)):
        _refuse_too_much(text, file)
    saving.write_atomic(to / ROUNDS, _gzipped(rounds))
    saving.write_atomic(to / RECORDS, _gzipped(lines))
    return len(records)


def unpack(folder, to):
    """Write the files of all runs of the two tables of a folder into the folder `to`; return how many runs.

    Raises InputError, and writes nothing, if there are tables or one of these files already, or one of the runs cannot
    be read as figures read it.
    """
    source, to = runs_of(folder), RunFiles(to)
    _refuse_what_is_there([to.folder / ROUNDS, to.folder / RECORDS])
    if isinstance(source, RunFiles):
        raise InputError(f"{source.folder}: there is no {ROUNDS}")
    for path, fault in source.faults.items():
        raise InputError(f"{path}: {fault}")
    found = {}
    for name in source.names:
        try:
            read_run(source, name)
            found[to.path(name)] = _json_text(source.record(name))
            found[to.folder / to.csv(name)] = source.rounds(name) if source.columns(name) else None
        except InputError as error:
            raise InputError(f"{source.path(name)}: cannot be unpacked: {error}") from None
    _refuse_what_is_there(found)
    for path, text in ((path, text) for path, text in found.items() if text is not None):
        saving.write_atomic(path, text)
    return len(source.names)


def _refuse_too_much(text, file):
    """Raise InputError if the content of a table, bytes, is more than is read of one."""
    for what, n, most in (
        ("bytes", len(text), files.TABLE),
        ("lines", text.count(b"\n"), LINES),
        ("columns", text.split(b"\n", 1)[0].count(b",") + 1 if file == ROUNDS else 0, WIDEST),
        ("bytes a record", max(map(len, text.split(b"\n"))) if file == RECORDS else 0, RECORD),
    ):
        if n > most:
            raise InputError(f"--pack: {file} would unpack to {n} {what}, more than the {most} that are read")


def _refuse_what_is_there(paths):
    for path in paths:
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is there already")


def _record_to_pack(source, name):
    """Return the record of a run that is to be packed."""
    record = source.record(name)
    if not is_name(name) or record.get("run") != name:
        raise InputError("it is of a run of another name")
    if source.is_running(name):
        raise InputError("the run still goes on")
    if COLUMNS in record or _json_text(record).encode() != files.read_bytes(source.path(name), files.JSON):
        raise InputError("it is not as a run writes it")
    return record


def _rounds_to_pack(source, name):
    """Return the header and the rows of the CSV of a run that is to be packed."""
    header, *rows = [cells_of(line) for line in lines_of(source.rounds(name), source.csv(name))] or [None]
    whole = header and len({*header, "run"}) == len(header) + 1 and all(row and len(row) == len(header) for row in rows)
    text = whole and saving.csv_text(header, [dict(zip(header, row, strict=True)) for row in rows])
    if not whole or text.encode() != files.read_bytes(source.folder / source.csv(name), files.CSV):
        raise InputError(f"{source.csv(name)} is not as a run writes it")
    return header, rows


def _packed(records, tables):
    """Return the content of the two tables, bytes, of {run: record} and {run: (header, rows), or None}."""
    columns = list(dict.fromkeys(column for table in tables.values() if table for column in table[0]))
    rows = [
        {"run": name, **dict(zip(table[0], row, strict=True))}
        for name, table in tables.items()
        if table
        for row in table[1]
    ]
    lines = []
    for name, record in records.items():
        own = tables[name] and tables[name][0]
        line = record if own == columns else record | {COLUMNS: own}
        lines.append(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
    return saving.csv_text(["run", *columns], rows).encode(), "".join(lines).encode()


def _json_text(record):
    """Return the text of a run's JSON, as saving.write_json has it."""
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _gzipped(content):
    """Return the bytes packed; the same content always gives the same bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        file.write(content)
    return packed.getvalue()
