"""Runs in two tables instead of two files each: `rounds.csv.gz` has the rows of all runs, `records.jsonl.gz` one run's
JSON a line. They hold what was in the files, to the last byte, and need no program to be read:

    pandas.read_csv("rounds.csv.gz"); pandas.read_json("records.jsonl.gz", lines=True)

The first column of rounds is `run`. A record has `csv_columns` beside what the run wrote if its CSV did not have all
columns of the table in this order; null if it had no CSV.
"""

import csv
import gzip
import io
import json
import zlib
from pathlib import Path

from fedmerge import files, locks, saving
from fedmerge.errors import InputError, reason

ROUNDS, RECORDS = "rounds.csv.gz", "records.jsonl.gz"
COLUMNS = "csv_columns"
LONGEST = 240  # bytes of the name of a run: file systems allow 255, and "_metrics.csv" comes on top
MANY = 1000  # lines that are no records, after which it is no table of runs


def runs_of(folder):
    """Return the RunTables or, if it has none, the RunFiles of a folder.

    Raises InputError if it has one of the tables only, or files of runs beside them.
    """
    folder = Path(folder)
    missing = [name for name in (ROUNDS, RECORDS) if not (folder / name).exists()]
    if len(missing) == 2:
        return RunFiles(folder)
    if missing:
        raise InputError(f"{folder / missing[0]}: is missing, though the other table of the runs is there")
    loose = next(folder.glob("*.json"), None)
    if loose is not None:
        raise InputError(f"{folder}: has {loose.name} beside the tables {ROUNDS} and {RECORDS}: move it elsewhere")
    return RunTables(folder)


class RunFiles:
    """The runs of a folder of `<run>.json` and `<run>_metrics.csv`."""

    faults = {}  # path -> what is wrong, of what is not even a run's name

    def __init__(self, folder):
        self.folder = Path(folder)
        self.names = [path.name.removesuffix(".json") for path in sorted(self.folder.glob("*.json"))]

    def path(self, name):
        """Return where the record of a run is, for messages."""
        return self.folder / f"{name}.json"

    def csv(self, name):
        """Return what messages call the rounds of a run."""
        return f"{name}_metrics.csv"

    def record(self, name):
        """Return the record of a run, a dict. Raises InputError."""
        return json_object(self._read(f"{name}.json", files.JSON))

    def rounds(self, name):
        """Return the rounds of a run, the text of a CSV. Raises InputError."""
        return self._read(self.csv(name), files.CSV)

    def is_running(self, name):
        """Tell whether a process is at this run."""
        lock = self.folder / f".{name}.lock"
        try:
            return lock.is_file() and not lock.is_symlink() and locks.is_held(lock)
        except OSError:
            return False

    def _read(self, file, limit):
        try:
            return files.read_text(self.folder / file, limit)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({reason(error)})") from None


class RunTables:
    """The runs of the two tables of a folder. A damaged line stops only its own run."""

    def __init__(self, folder):
        self.folder, self.faults = Path(folder), {}
        header, *lines = _lines(self.folder / ROUNDS) or [""]
        self.header = _cells(header) or []
        if self.header[:1] != ["run"] or len(set(self.header)) < len(self.header):
            raise InputError(f"{self.folder / ROUNDS}: the columns do not begin with `run`, or one is there twice")
        self.lines = {}  # run -> its record, a line of JSON
        for number, line in enumerate(_lines(self.folder / RECORDS), 1):
            self._add_record(f"line {number}", line)
        self.names = sorted(self.lines, key="{}.json".format)  # in the order of their files
        self.rows = {}  # run -> its rows, lines of CSV
        for number, line in enumerate(lines, 2):
            name = (_cells(line) or line.split(",", 1))[0]
            if name in self.lines:
                self.rows.setdefault(name, []).append(line)
            else:
                place = name if is_name(name) else f"line {number}"
                self._add_fault(self.folder / ROUNDS / place, "it has rounds, but no record")

    def _add_record(self, place, line):
        try:
            name = json_object(line).get("run")
            if not is_name(name):
                raise InputError("it does not tell the name of its run")
            if name in self.lines:
                raise InputError(f"it is a second record of {name}")
        except InputError as error:
            self._add_fault(self.folder / RECORDS / place, str(error))
        else:
            self.lines[name] = line

    def _add_fault(self, place, fault):
        self.faults[place] = fault
        if len(self.faults) > MANY:
            raise InputError(f"{self.folder}: more than {MANY} lines of the tables are no records of a run")

    def path(self, name):
        """Return where the record of a run is, for messages: as if the table were a folder."""
        return self.folder / RECORDS / f"{name}.json"

    def csv(self, name):
        """Return what messages call the rounds of a run."""
        return ROUNDS

    def record(self, name):
        """Return the record of a run, a dict, as it wrote it."""
        record = json_object(self.lines[name])
        record.pop(COLUMNS, None)
        return record

    def rounds(self, name):
        """Return the rounds of a run, the text of a CSV. Raises InputError."""
        known = self.header[1:]
        columns = json_object(self.lines[name]).get(COLUMNS, known)
        if columns is None:
            raise InputError(f"{ROUNDS} has no rows of it")
        if not isinstance(columns, list) or not all(column in known for column in columns):
            raise InputError(f"its `{COLUMNS}` are not columns of {ROUNDS}")
        rows = [_cells(line) for line in self.rows.get(name, [])]
        if any(row is None or len(row) != len(self.header) for row in rows):
            raise InputError(f"{ROUNDS} has a damaged row of it")
        places = {column: self.header.index(column) for column in columns}
        return saving.csv_text(columns, [{column: row[place] for column, place in places.items()} for row in rows])

    def is_running(self, name):
        """Tell whether a process is at this run: none is, since nothing is written here."""
        return False


def is_name(name):
    """Tell whether it may be the name of a run, and of its files."""
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    return plain and 0 < len(name.encode("utf-8", "replace")) <= LONGEST and name[0] != "."


def json_object(text):
    """Return the dict of a text of strict JSON. Raises InputError."""

    def refuse(number):
        raise ValueError(f"{number} is no number of JSON")

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError("it is no JSON object")
    return content


def pack(folder, to):
    """Put all runs of a folder of their files into the two tables of the folder `to`; return how many.

    Raises InputError, and writes nothing, if there are tables or files of runs already, a run still goes on, or one of
    the files is not as a run leaves it, so that it would not come back the same.
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
        except InputError as error:
            raise InputError(f"{source.path(name)}: cannot be packed: {error}") from None
    rounds, lines = _packed(records, tables)
    for text, file in ((rounds, ROUNDS), (lines, RECORDS)):
        if len(text) > files.TABLE:
            raise InputError(
                f"--pack: {file} would unpack to {len(text)} bytes, more than the {files.TABLE} that are read"
            )
    saving.write_atomic(to / ROUNDS, _gzipped(rounds))
    saving.write_atomic(to / RECORDS, _gzipped(lines))
    return len(records)


def unpack(folder, to):
    """Write the files of all runs of the two tables of a folder into the folder `to`; return how many runs.

    Raises InputError, and writes nothing, if one of these files is there already or a line of the tables is damaged.
    """
    source, to = runs_of(folder), RunFiles(to)
    if isinstance(source, RunFiles):
        raise InputError(f"{source.folder}: there is no {ROUNDS}")
    for path, fault in source.faults.items():
        raise InputError(f"{path}: {fault}")
    found = {}
    for name in source.names:
        record = source.record(name)
        found[to.path(name)] = _json_text(record)
        if json_object(source.lines[name]).get(COLUMNS, ()) is not None:
            found[to.folder / to.csv(name)] = source.rounds(name)
    _refuse_what_is_there(found)
    for path, text in found.items():
        saving.write_atomic(path, text)
    return len(source.names)


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
    header, *rows = [_cells(line) for line in _split(source.rounds(name))] or [None]
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


def _lines(path):
    """Return the lines of a gzipped text. Raises InputError, also for what unpacks to too much."""
    try:
        with files.open_regular(path, files.TABLE) as packed, gzip.open(packed) as unpacked:
            content = unpacked.read(files.TABLE + 1)
        if len(content) > files.TABLE:
            raise InputError(f"{path}: unpacks to more than the {files.TABLE} bytes that are read of such a file")
        return _split(content.decode())
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None


def _split(text):
    """Return the lines of a text that all end with LF or CR LF."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _cells(line):
    """Return the cells of a line of CSV, [str], or None if it is none."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration):
        return None
