"""The CSV of a run: a row a round."""

import os
from pathlib import Path

from fedmerge.saving import csv_text, write_atomic


class MetricsCSV:
    """The CSV of a run, a row a round; a row that cannot be written whole is not there.

    rows: those of a run that goes on. Raises OSError if a row cannot be written, or the file was taken away.
    """

    def __init__(self, path, columns, rows=()):
        self.path, self.columns = Path(path), columns
        write_atomic(self.path, csv_text(columns, rows))
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def write(self, row):
        """Append a row."""
        line, before = csv_text(self.columns, [row], header=False).encode(), os.fstat(self.file).st_size
        if not self.path.exists() or not os.path.samestat(os.lstat(self.path), os.fstat(self.file)):
            raise OSError(f"{self.path} was removed while the run wrote to it")
        try:
            written = os.write(self.file, line)
            if written < len(line):
                os.write(self.file, line[written:])  # says why
        except OSError:
            os.ftruncate(self.file, before)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self.file)
