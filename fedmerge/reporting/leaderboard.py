"""docs/leaderboard.md, made from the studies in results/: `python -m fedmerge.reporting.leaderboard`.

Setting by setting, all methods that were run in it, best accuracy first. Nothing here imports torch.
"""

import sys
from collections import Counter
from pathlib import Path

from fedmerge.config.run_name import acting
from fedmerge.python_source import HERE
from fedmerge.reporting import run_list, tables
from fedmerge.reporting import series as grouping
from fedmerge.reporting.run_tables import ROUNDS, runs_of
from fedmerge.reporting.runs import load_runs
from fedmerge.saving import write_atomic

RESULTS = HERE.parent / "results"
PAGE = HERE.parent / "docs" / "leaderboard.md"
BEGIN = """# Leaderboard

Every method of every [study](../results/README.md), setting by setting, the best test accuracy first: mean ± standard
deviation over the seeds, after the last round. Less up, less in all: than if all clients sent, and got, whole models in
float32. Seconds are of training, per round, on the machine that is named. The page is made from the runs by
`make docs`; nothing in it is typed.

A run of your own belongs beside them if its settings are the same but for the method. Take them from the list that a
setting names, then

```sh
python plotting.py --csv_dir metrics
```

prints the same columns for it. What a table leaves open is in the study's own page: what was chosen on which data, and
what a difference means.
"""
COLUMNS = {
    "seeds": "seeds",
    "test acc. %, last round": "test accuracy, %",
    "MB up/round": "MB up / round",
    "less up": "less up",
    "less in all": "less in all",
    "s/round": "s / round",
}
SETTING = ("model_name", "image_size", "pretrained", "n_clients", "participation", "n_epochs", "local_steps")
SETTING += ("n_client_epochs", "batch_size", "local_optimizer", "lr", "lr_decay", "augment", "shared_init")


def studies(results=RESULTS):
    """Return the folders of studies in `results`."""
    return sorted(path.parent for path in Path(results).glob(f"*/{ROUNDS}"))


def page(results=RESULTS):
    """Return the page, Markdown."""
    sections = [section for study in studies(results) for section in sections_of(study)]
    sections.sort(key=lambda section: section[0])
    return "\n".join([BEGIN, *(text for _, text in sections)])


def sections_of(study):
    """Return (what sorts it, Markdown) of each setting of a study: a dataset and a split."""
    runs, found = load_runs(study)[0], []
    source = runs_of(study)
    machines = Counter(device_of(source.record(run_list.name_of(run))) for run in runs)
    for dataset in sorted({run.settings["dataset"] for run in runs}):
        here = [run for run in runs if run.settings["dataset"] == dataset]
        drawn = [series for series in grouping.group_series(here) if series.runs]
        for level in dict.fromkeys(series.level for series in drawn):
            members = [series for series in drawn if series.level == level]
            title = f"## {dataset}, {level.title}: {study.name}"
            text = [
                title,
                "",
                about(study, [run for series in members for run in series.runs], machines),
                "",
                table(members),
            ]
            found.append(((dataset, level.order, study.name), "\n".join(text)))
    return found


def device_of(record):
    environment = record.get("environment") or {}
    return environment.get("device_name") or environment.get("device") or "an unknown machine"


def about(study, runs, machines):
    """Return a paragraph on what all Runs of a setting have in common, where and by what they were run."""
    settings = [acting(run.settings) for run in runs]
    common = {name: settings[0].get(name) for name in SETTING if len({str(s.get(name)) for s in settings}) == 1}
    words = ", ".join(f"{name} {value}" for name, value in common.items() if value not in (None, False))
    commits = sorted({run.commit for run in runs if run.commit})
    place = f"../results/{study.name}"
    return (
        f"[{study.name}]({place}/README.md), flags of each run in [its list]({place}/experiments.txt). In all rows: "
        f"{words}. On {', '.join(machines)}; commit {', '.join(commits) or 'not told'}."
    )


def table(members):
    """Return the table of the Series of a setting, Markdown, the best first."""
    rows = [(series.scores("accuracy").mean(), series.label, tables.summary_row("", series)) for series in members]
    lines = [f"| method | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for _, label, row in sorted(rows, key=lambda row: (-row[0], row[1])):
        cells = [label.replace("|", "\\|"), *(row[name] for name in COLUMNS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    write_atomic(PAGE, page())
    print(f"{PAGE}: {len(studies())} studies")


if __name__ == "__main__":
    sys.exit(main())
