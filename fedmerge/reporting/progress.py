"""What is shown of a run while it trains: a bar on a terminal, elsewhere a line a round; and what it will cost."""

import contextlib
import itertools
import math
import sys
import time

import torch
from tqdm import auto, tqdm

from fedmerge.reporting.durations import duration

EVERY = 60  # seconds between two lines, at least one of which is of a round
SURE = 5  # seconds of work after which an estimate is worth being said: the first client takes longer than its like
LONG = 600  # seconds from which on it is said what a run will cost
REFRESH = 0.2  # seconds between two looks of the bar
PASS = 3  # samples evaluated in the time in which one is trained on


class Progress:
    """Shows how far the run of an Experiment is; with --quiet it only counts."""

    def __init__(self, run):
        self.run, self.history, self.settings = run, run.history, run.settings
        self.total, self.quiet = run.history.n_rounds, run.settings.quiet
        self.begun = self.said = time.monotonic()
        self.first = run.history.n_done  # rounds that another process did
        self.per_round, self.part = math.nan, 0.0  # seconds; share of the round under way that is done
        self.seconds = {"train": 0.0, "eval": 0.0}
        self.figures = {}  # name -> text, of the last rounds that had them
        self.told = self.hinted = self.quiet
        loads = [run.clients.load_of(client_id) for client_id in range(len(run.clients.parts))]
        mean = sum(loads) / (len(loads) - len(run.server.empty))
        arriving = run.server.cohort_size * (1 - run.settings.dropout)
        self.load = arriving * mean  # samples of an average round
        self.bar = None
        if sys.stderr.isatty() and not self.quiet:
            print(run.name, file=sys.stderr)
            self.bar = Bar(total=self.total, initial=self.first, mininterval=REFRESH, miniters=0, dynamic_ncols=True)
            self.bar.show(self.first, f"round {self.first + 1}/{self.total}", "")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def left(self):
        """Return the estimated seconds until the last round is through; nan if nothing is known yet."""
        return self.per_round * (self.total - self.history.n_done - self.part)

    def begin(self, cohort, ids):
        """Begin with those of the clients `ids` of the Cohort that have not sent yet."""
        self.ids, self.done_before, self.clock = ids, len(cohort.done), time.monotonic()
        self.loads = list(itertools.accumulate(self.run.clients.load_of(client_id) for client_id in ids))  # sums

    def after_client(self, cohort):
        """Show that another client of the Cohort has sent."""
        done = len(cohort.done)
        self.part = self.loads[done - 1] / self.loads[-1]
        if not self.told and self.run.device.type != "cpu":
            getattr(torch, self.run.device.type).synchronize()  # what was asked for is done only then
        seconds = time.monotonic() - self.clock
        if self.history.n_done == self.first:
            self.per_round = self._estimate(done, seconds)
        place = f"round {self.history.n_done + 1}/{self.total} client {done}/{len(self.ids)}"
        self._tell_cost()
        if self.bar is not None:
            self.bar.show(self.history.n_done + self.part, place, self._status())
        elif not self.quiet and time.monotonic() - self.said > EVERY:
            self._print(f"{place}: {duration(self.left())} to go")

    def _estimate(self, done, seconds):
        """Return the seconds of an average round, if `done` clients took so many: by their samples."""
        run, splits = self.run, self.run.splits
        ahead = min(
            len(self.loads), done + run.clients.threads.n - 1
        )  # others are at work beside the one that has sent
        before = self.loads[self.done_before - 1] if self.done_before else 0
        of_sample = seconds / (self.loads[ahead - 1] - before)
        evaluated = len(splits.val) + len(splits.test) + (len(splits.train) if self.settings.eval_train else 0)
        training = self.load / run.backend.n_processes
        return of_sample * (training + evaluated / PASS / self.settings.eval_every)

    def after_round(self, row):
        """Show that the round of this row is through."""
        done, self.part = self.history.n_done, 0.0
        self.per_round = (time.monotonic() - self.begun) / (done - self.first)
        self._take_figures(row)
        self._tell_cost()
        self._hint_at_evaluation()
        if self.bar is not None:
            self.bar.show(done, f"round {done}/{self.total}", self._status())
        elif not self.quiet:
            self._print(f"round {done}/{self.total}: {self._line(row)}")

    def _take_figures(self, row):
        for name in self.seconds:
            self.seconds[name] += row.get(f"{name}_seconds", 0)
        if "test_accs" in row:
            self.figures["acc"] = f"test acc {row['test_accs']:.4f}"
        megabytes = (row["bytes_up_total"] + row["bytes_down_total"]) / 1e6
        self.figures["MB"] = f"{megabytes:.{1 if megabytes >= 10 else 3}f} MB"

    def _line(self, row):
        """Return what is told of a round where there is no terminal."""
        words = [self.figures["acc"]] if "test_accs" in row else []
        if "train_losses" in row:
            words.append(f"train loss {row['train_losses']:.4f}")
        evaluation = f" + {row['eval_seconds']:.2f} s evaluation" if "eval_seconds" in row else ""
        words += [f"{self.figures['MB']} so far", f"{row['train_seconds']:.2f} s training{evaluation}"]
        if self.history.n_done < self.total:
            words.append(f"{duration(self.left())} to go")
        return ", ".join(words)

    def _status(self):
        left = [f"{duration(self.left())} to go"] if self.left() > 0 else []
        return ", ".join([*left, *self.figures.values()])

    def _print(self, line):
        try:
            print(line, flush=True)
        except OSError as error:
            raise OSError(f"standard output: {error.strerror}") from None
        self.said = time.monotonic()

    def _say(self, line):
        """Say something beside the progress itself."""
        with tqdm.external_write_mode(file=sys.stderr):
            print(line, file=sys.stderr, flush=True)

    def _tell_cost(self):
        """Say once what the run will cost, if that is much, as soon as it is known well enough."""
        if self.told or time.monotonic() - self.begun < SURE:
            return
        self.told = True
        if self.left() > LONG:
            args = self.settings
            rate = 60 * self.run.server.cohort_size / self.per_round
            rate = f"{rate:.{0 if rate >= 10 else 1}f} clients a minute"
            model = "" if args.model_name == "cnn" else ", or the small --model_name cnn,"
            self._say(
                f"about {duration(self.left())} to go on this machine, {rate}: fewer rounds (--n_epochs) or steps "
                f"(--local_steps){model} take less"
            )

    def _hint_at_evaluation(self):
        total, every = sum(self.seconds.values()), self.settings.eval_every
        if not self.hinted and total > EVERY and self.seconds["eval"] > total / 3 and every < self.total:
            self.hinted = True
            share = self.seconds["eval"] / total
            self._say(f"evaluation takes {share:.0%} of the time: a larger --eval_every, now {every}, makes it less")


class RoundsBar:
    """Shows the rounds of a run in a bar as it suits a notebook or a terminal, as long as a `with` lasts."""

    def __init__(self, settings, shown=True):
        self.bar = auto.tqdm(total=settings.n_epochs, unit="round", disable=not shown)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def after_round(self, row):
        """Show what a round's row {column: figure} tells."""
        self.bar.n = row["epoch"]
        accuracy = {"test accuracy": f"{row['test_accs']:.4f}"} if "test_accs" in row else {}
        megabytes = (row["bytes_up_total"] + row["bytes_down_total"]) / 1e6
        self.bar.set_postfix(**accuracy, MB=f"{megabytes:.3g}")

    def already_finished(self):
        """Show that there was nothing left to do."""
        self.bar.n = self.bar.total
        self.bar.set_postfix_str("finished before")


class Bar(tqdm):
    """A bar that keeps room for what is beside it: where it is, and a status."""

    status = ""

    def __init__(self, **given):
        super().__init__(bar_format="{desc} |{bar}| {status}", **given)

    @property
    def format_dict(self):
        return super().format_dict | {"status": self.status}

    def show(self, n, place, status):
        """Show that n, which need not be whole, are done."""
        self.status = status
        self.set_description_str(place, refresh=False)
        self.update(n - self.n)


def say(line):
    """Print what a run says at its end: all is there, whether or not somebody reads of it."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
