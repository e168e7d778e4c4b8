"""What became of a run's rounds."""


class History:
    """rows: a dict of columns for each round; judged: the last evaluation's predictions int64 [N], and their Images."""

    def __init__(self, n_rounds):
        self.n_rounds, self.rows, self.judged = n_rounds, [], ()

    @property
    def n_done(self):
        """How many rounds are through."""
        return len(self.rows)

    def add(self, row):
        """Take the row of the next round."""
        self.rows.append(row)
