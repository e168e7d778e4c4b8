"""Runs in two tables instead of two files each: `rounds.csv.gz` has the rows of all runs, `records.jsonl.gz` one run's
JSON a line. They hold what was in the files, to the last byte, and need no program to be read:

    pandas.read_csv("rounds.csv.gz"); pandas.read_json("records.jsonl.gz", lines=True)

The first column of rounds is `run`. A record has `csv_columns` beside what the run wrote if its CSV did not have all
columns of the table in this order; null if it had no CSV.
"""

import csv
import gzip
import zlib
from pathlib import Path

from fedmerge import files, locks, saving
from fedmerge.errors import InputError, reason
from fedmerge.saving import json_object

ROUNDS, RECORDS = "rounds.csv.gz", "records.jsonl.gz"
COLUMNS = "csv_columns"
LONGEST = 240  # bytes of the name of a run: file systems allow 255, and "_metrics.csv" comes on top
MANY = 1000  # lines that are no records, after which it is no table of runs
LINES = 2**19  # of a table, or of the CSV of a run: rows have some 300 bytes, and files.TABLE hold no more of them
WIDEST = 1000  # columns
RECORD = 2**24  # characters of a record in a table: a hundred thousand clients fit


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
        if header.count(",") >= WIDEST:
            raise InputError(f"{self.folder / ROUNDS}: has more than the {WIDEST} columns that are read")
        self.header = cells_of(header) or []
        if self.header[:1] != ["run"] or len(set(self.header)) < len(self.header):
            raise InputError(f"{self.folder / ROUNDS}: the columns do not begin with `run`, or one is there twice")
        self.lines = {}  # run -> its record, a line of JSON
        for number, line in enumerate(_lines(self.folder / RECORDS), 1):
            self._add_record(f"line {number}", line)
        self.names = sorted(self.lines, key="{}.json".format)  # in the order of their files
        self.rows = {}  # run -> its rows, lines of CSV
        for number, line in enumerate(lines, 2):
            name = (cells_of(line) or line.split(",", 1))[0]
            if name in self.lines:
                self.rows.setdefault(name, []).append(line)
            else:
                place = name if is_name(name) else f"line {number}"
                self._add_fault(self.folder / ROUNDS / place, "it has rounds, but no record")

    def _add_record(self, place, line):
        try:
            if len(line) > RECORD:
                raise InputError(f"it has more than the {RECORD} characters that are read of a record")
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
        columns = self.columns(name)
        if columns is None:
            raise InputError(f"{ROUNDS} has no rows of it")
        rows = [cells_of(line) for line in self.rows.get(name, [])]
        if any(row is None or len(row) != len(self.header) for row in rows):
            raise InputError(f"{ROUNDS} has a damaged row of it")
        place = {column: i for i, column in enumerate(self.header)}
        return saving.csv_text(columns, [{column: row[place[column]] for column in columns} for row in rows])

    def columns(self, name):
        """Return the columns that the CSV of a run had, None if it had no CSV. Raises InputError."""
        known = self.header[1:]
        columns = json_object(self.lines[name]).get(COLUMNS, known)
        if columns is None and name not in self.rows:
            return None
        texts = isinstance(columns, list) and all(isinstance(column, str) for column in columns)
        if not texts or not columns or len(set(columns)) < len(columns) or not set(columns) <= set(known):
            raise InputError(f"its `{COLUMNS}` are not columns of {ROUNDS}, each once")
        return columns

    def is_running(self, name):
        """Tell whether a process is at this run: none is, since nothing is written here."""
        return False


def is_name(name):
    """Tell whether it may be the name of a run, and of its files."""
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    return plain and 0 < len(name.encode("utf-8", "replace")) <= LONGEST and name[0] != "."


def _lines(path):
    """Return the lines of a gzipped text. Raises InputError, also for what unpacks to too much."""
    try:
        with files.open_regular(path, files.TABLE) as packed, gzip.open(packed) as unpacked:
            content = unpacked.read(files.TABLE + 1)
        if len(content) > files.TABLE:
            raise InputError(f"{path}: unpacks to more than the {files.TABLE} bytes that are read of such a file")
        return lines_of(content.decode(), path)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None


def lines_of(text, file):
    """Return the lines of a text that all end with LF or CR LF. Raises InputError, on the `file`, for too many."""
    if text.count("\n") > LINES:
        raise InputError(f"{file}: has more than the {LINES} lines that are read of such a file")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def cells_of(line):
    """Return the cells of a line of CSV, [str], or None if it is none, or has more than WIDEST."""
    if line.count(",") >= WIDEST:
        return None
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration):
        return None
