"""What was chosen, in Markdown and as what JSON holds."""

import math
import shlex

WORDS = {"last": "of the last round", "last10": "of the last ten rounds", "best": "of the best round"}


def as_markdown(templates, choices, seeds, by):
    """Return the report of the Choices of some Templates."""
    of = (
        f"seed {seeds[0]}"
        if len(seeds) == 1
        else f"the mean over seeds {', '.join(map(str, seeds))}, and their deviation"
    )
    head = f"# Chosen by validation accuracy {WORDS[by]}\n\nIn per cent; {of}.\n"
    return "\n".join([head, *(_section(one, choice, seeds) for one, choice in zip(templates, choices, strict=True))])


def _section(template, choice, seeds):
    lines = [f"## `{shlex.join(part for part in template.parts if isinstance(part, str))}`", ""]
    lines += [f"- {line}" for line in conclusions(choice, seeds)]
    names = [group.name for group in template.groups]
    lines += ["", f"| {' | '.join(names)} | validation accuracy |", "|---" * (len(names) + 1) + "|"]
    for point in choice.points:
        lines.append(f"| {' | '.join(point.values[name] for name in names)} | {_reached(point)} |")
    return "\n".join(lines) + "\n"


def _reached(point):
    if point.failed:
        return "; ".join(f"seed {seed}: {why}" for seed, why in point.failed.items()).replace("|", "\\|")
    return f"{100 * point.mean:.2f}" + ("" if math.isnan(point.deviation) else f" ± {100 * point.deviation:.2f}")


def conclusions(choice, seeds):
    """Return what there is to say of a Choice, a list of sentences."""
    if choice.best is None:
        return ["**nothing can be chosen**: of every point a run failed"]
    said = [f"**{choice.best.text}**: {_reached(choice.best)}"]
    if choice.margin:
        said.append(_ahead(choice, len(seeds)))
    for name, value, end in choice.at_end:
        further = "larger" if end == "largest" else "smaller"
        said.append(f"{name}={value} is the {end} that was tried: try {further} ones")
    return said


def _ahead(choice, n_seeds):
    points = [100 * margin for margin in choice.margin]
    mean, second = sum(points) / len(points), choice.second.text
    text = f"{mean:.2f} points ahead of {second}"
    if n_seeds == 1:
        return f"{text}, with one seed: how much of it is chance, it cannot tell"
    text += f" ({', '.join(f'{x:+.2f}' for x in points)} by the seed)"
    return text if all(x > 0 for x in points) else f"{text}: with these seeds, the two are not told apart"


def as_json(template, choice):
    """Return what choice.json holds of a Choice."""

    def told(point):
        return {
            "values": point.values,
            "mean": None if math.isnan(point.mean) else point.mean,
            "by_seed": {str(seed): accuracy for seed, accuracy in point.accuracies.items()},
            "failed": {str(seed): why for seed, why in point.failed.items()},
        }

    return {
        "flags": [part for part in template.parts if isinstance(part, str)],
        "chosen": choice.best and choice.best.values,
        "margin": choice.margin,
        "at_end": [{"name": name, "value": value, "end": end} for name, value, end in choice.at_end],
        "points": [told(point) for point in choice.points],
    }
