"""A list of templates with the runs of all their points: what is to be run, what came of it, and what is chosen."""

import hashlib
import json
import shlex
from pathlib import Path

from fedmerge import saving
from fedmerge.config.run_name import run_name
from fedmerge.errors import InputError
from fedmerge.reporting.run_status import parsed, state_of
from fedmerge.tuning.choice import BY, Point, choose
from fedmerge.tuning.report import as_json, as_markdown

CHOSEN, REPORT, DATA = "chosen.txt", "choice.md", "choice.json"
OF_ONE_RUN = ("save_weights", "save_clients", "evaluate_clients")  # flags that name what one run writes, or reads


class Study:
    """Templates, seeds and a folder: a run of each point of each template with each seed.

    Raises InputError, before anything is written, for what fedalg.py would refuse and for two points that are one run.
    """

    def __init__(self, templates, seeds, out, by="last"):
        if not templates:
            raise InputError("there are no lines of flags in the list")
        if len(set(seeds)) < len(seeds):
            raise InputError(f"--seeds {' '.join(map(str, seeds))}: a seed is there twice")
        self.templates, self.seeds, self.out, self.by = templates, list(seeds), Path(out), by
        self.points = [[Point(values, words) for values, words in one.points()] for one in templates]
        self._check()
        self.n_runs = len(self.seeds) * sum(map(len, self.points))
        self.all_chosen = False

    def _check(self):
        there = {}
        for one, points in zip(self.templates, self.points, strict=True):
            for point in points:
                said = f"{one.where}: {point.text}"
                try:
                    settings = parsed(self.run_of(point, self.seeds[0]))
                    name = run_name(settings)
                except InputError as error:
                    raise InputError(f"{said}: {str(error).removeprefix('fedalg.py: error: ')}") from None
                for flag in OF_ONE_RUN:
                    if getattr(settings, flag) is not None:
                        raise InputError(f"{said}: --{flag} is of one run, and these are several: leave it out")
                if not settings.validation:
                    raise InputError(f"{said}: --no-validation leaves nothing to choose by")
                if name in there:
                    raise InputError(f"{said}: is the same run as {there[name]}")
                there[name] = said

    def run_of(self, point, seed):
        """Return the flags of a run, a list of str."""
        return [*point.words, "--seed", str(seed), "--out", str(self.out)]

    def write_list(self):
        """Write the list of all runs, and return its path.

        Its name tells its content, so that no other list takes its place while its lines wait to be run by number.
        """
        runs = [self.run_of(point, seed) for points in self.points for point in points for seed in self.seeds]
        text = "".join(shlex.join(words) + "\n" for words in runs)
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"runs_{hashlib.sha256(text.encode()).hexdigest()[:8]}.txt"
        _write(path, text)
        return path

    def collect(self):
        """Read what has become of all runs. Returns a line for each that is neither finished nor failed."""
        missing = []
        for points in self.points:
            for point in points:
                for seed in self.seeds:
                    words = self.run_of(point, seed)
                    state, name = state_of(words)
                    if state == "done":
                        point.accuracies[seed] = self._accuracy(name)
                    elif state.startswith("failed"):
                        point.failed[seed] = state
                    else:
                        missing.append(f"{name}: {state}")
        return missing

    def _accuracy(self, name):
        record = saving.read_json(self.out / "metrics" / f"{name}.json")
        found = (record.get("final") or {}).get(BY[self.by])
        if not isinstance(found, float | int):
            raise InputError(f"{name}: its record has no {BY[self.by]}")
        return float(found)

    def write_choices(self):
        """Write what is chosen for each template; return the report, in Markdown."""
        choices = [choose(points, one.groups) for one, points in zip(self.templates, self.points, strict=True)]
        best = [choice.best for choice in choices]
        self.all_chosen = None not in best
        report = as_markdown(self.templates, choices, self.seeds, self.by)
        _write(self.out / REPORT, report)
        told = [as_json(one, choice) for one, choice in zip(self.templates, choices, strict=True)]
        content = {"by": BY[self.by], "seeds": self.seeds, "choices": told}
        _write(self.out / DATA, json.dumps(content, indent=1) + "\n")
        _write(self.out / CHOSEN, "".join(shlex.join(point.words) + "\n" for point in best if point))
        return report


def _write(path, text):
    saving.write_atomic(path, text.encode())
