"""The page of all components, docs/algorithms.md, as `python -m fedmerge.reporting.method_pages` makes it.

Nothing here imports torch: docstrings are read from the source, as all else that is registered is.
"""

import argparse
import ast
import itertools
import re
import sys

from fedmerge.config.kinds import KINDS, pattern
from fedmerge.config.options import all_options
from fedmerge.registry import AXES, HERE, SHELVES, having, requirements, specs
from fedmerge.saving import write_atomic

ROOT = HERE.parent
PAGE = ROOT / "docs" / "algorithms.md"
# A heading and a sentence for each shelf.
ABOUT = {
    "algorithm": (
        "Algorithms",
        "What the server sends, what is added to a client's gradients, and what the server makes of the merged step.",
    ),
    "local": ("Local methods", "How a client makes its model of the one that it received."),
    "compressor": (
        "Compressors",
        "What of an update is sent. With `--residual client` what is not sent waits at the client for the next round.",
    ),
    "merge": ("Merging rules", "How the server merges what arrives."),
    "dataset": ("Datasets", "What is trained on; also the name of [a folder of images](data.md)."),
    "partition": ("Partitions", "How the training set is split among the clients; see [Splits](splits.md)."),
    "model_name": ("Networks", "What is trained."),
}
EXAMPLES = {
    "count": "2",
    "positive": "0.5",
    "decay": "0.1",
    "count,positive": "2,0.5",
}  # of values that --partition has behind the colon


def page():
    """Return the page, Markdown."""
    parts = [
        "# Components",
        "What lies on the shelves, made from the code by `make docs`: change a component's file, not this page. Flags "
        "that every run has are in `python fedalg.py --help`. To add one, see [Extending](extending.md).",
        _contents(),
    ]
    for shelf, (title, about) in ABOUT.items():
        parts += [f"## {title} (`--{shelf}`)", about]
        for members in _by_object(shelf):
            parts += _section(members)
    return "\n\n".join(parts) + "\n"


def _by_object(shelf):
    """Return lists of the Specs of a shelf: those of one class or function, which may have several names, together."""
    ordered = sorted(specs(shelf).values(), key=lambda spec: (_first_name(shelf, spec), spec.name))
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda spec: (spec.file, spec.object))]


def _first_name(shelf, spec):
    return min(s.name for s in specs(shelf).values() if (s.file, s.object) == (spec.file, spec.object))


def _contents():
    rows = ["| flag | components |", "|---|---|"]
    for shelf, (title, _) in ABOUT.items():
        links = [f"[`{s.shown}`](#{_anchor(_heading(group))})" for group in _by_object(shelf) for s in group]
        rows.append(f"| [`--{shelf}`](#{_anchor(f'{title} (`--{shelf}`)')}) | {', '.join(links)} |")
    return "\n".join(rows)


def _heading(members):
    """Return the heading of the section of some Specs; no other section has it."""
    first, *others = members
    shown = pattern(first) if first.shelf == "partition" else first.shown
    names = ", ".join([f"`--{first.shelf} {shown}`", *(f"`{spec.name}`" for spec in others)])
    titles = ", ".join(spec.title for spec in members if spec.title != spec.name and "title" in spec.more)
    return names + (f": {titles}" if titles and "{" not in titles else "")


def _anchor(heading):
    """Return what a heading is linked by, as GitHub has it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _section(members):
    """Return the paragraphs about some Specs of one class or function."""
    first = members[0]
    place = first.file.relative_to(ROOT)
    papers = list(dict.fromkeys(spec.more["paper"] for spec in members if "paper" in spec.more))
    source = f"[{place}](../{place})"
    lines = [f"### {_heading(members)}", *_told(first), "; ".join([*papers, source]) + "."]
    lines += ["\n".join(f"- {fact}" for spec in members for fact in _facts(spec, len(members) > 1))]
    lines += [_flags(first)] if first.options else []
    lines += [_studies(members)]
    return [*(line for line in lines if line), "```sh\n" + "\n".join(_commands(members)) + "\n```"]


def _told(spec):
    """Return the paragraphs of a component's docstring, those of what differs marked."""
    (node,) = (
        n for n in ast.parse(spec.file.read_text(encoding="utf-8")).body if getattr(n, "name", "") == spec.object
    )
    paragraphs = [" ".join(text.split()) for text in (ast.get_docstring(node) or "").split("\n\n")]
    told = [text[:1].upper() + text[1:] + ("" if re.search(r"[.:]\)?$", text) else ".") for text in paragraphs if text]
    told = [re.sub(r"--\w[\w-]*( [a-z0-9.]+(?=[),;]| for\b| is\b))?", r"`\g<0>`", text) for text in told]
    return [re.sub(r"^Differs[^:]*:", r"**\g<0>**", text) for text in told]


def _facts(spec, named):
    """Return sentences about a Spec: what its registration says. named: whether to name it in each."""
    more, who = spec.more, f"`{spec.name}`: " if named else ""
    facts = [f"stands for {_linked(spec.defaults)}"] if spec.defaults else []
    facts += [f"`--preset {name}` stands for `{_words(preset)}`" for name, preset in sorted(spec.presets.items())]
    needs = [f"`--{flag} {'` or `'.join(map(str, values))}`" for flag, values in requirements(spec).items()]
    facts += [f"needs {', '.join(needs)}"] if needs else []
    facts += [say(more[keyword]) for keyword, say in SAID.items() if more.get(keyword)]
    return [who + fact for fact in facts]


# What is said of a keyword of a registration, given its value.
SAID = {
    "server_residual": lambda value: "takes `--residual server`",
    "needs": lambda value: (
        "keeps all updates of a round at the server, at most `--max_cohort_memory` GiB"
        if isinstance(value, str)
        else f"adds up the clients' {' and '.join(value)}"
    ),
    "uploads": lambda value: f"has clients send besides their change: {', '.join(value)}",
    "bundled": lambda value: "there is nothing to download",
    "download": lambda value: "`python data.py --download` fetches it",
    "then": lambda value: f"then `{value}` is to be run",
    "model": lambda value: f"`--model_name {value}` unless said otherwise",
    "domains": lambda value: "has several domains, for `--shift feature`",
    "augment": lambda value: "is trained on cropped and flipped images unless `--augment none`",
    "pixels": lambda value: f"has images of {value}x{value} pixels",
    "never_augmented": lambda value: f"refuses `--augment standard`: {value}",
    "label_set": lambda value: f"has the classes of `{value}`",
    "value": lambda value: f"VALUE: {', then '.join(map(kind_in_words, value.split(',')))}",
    "of": lambda value: f"divides the samples by their {value}, not their classes",
    "norms": lambda value: f"`--norm {value[0]}`" + (f", or {' or '.join(value[1:])}" if value[1:] else " only"),
    "pretrained": lambda value: "has published ImageNet weights, for `--pretrained`",
}


def _studies(members):
    """Return a sentence about the studies of results/ whose lists have runs of these; "" if there are none."""
    flags = "|".join(re.escape(f"--{spec.shelf} {spec.name}") for spec in members)
    lists = sorted((ROOT / "results").glob("*/experiments.txt"))
    found = [f.parent.name for f in lists if re.search(rf"({flags})\b", f.read_text(encoding="utf-8"))]
    return f"Measured in {', '.join(f'[{name}](../results/{name}/README.md)' for name in found)}." if found else ""


def _linked(settings):
    """Return the flags of settings {name: value} in words, components as links to their sections."""
    sections = {axis: {s.name: _anchor(_heading(group)) for group in _by_object(axis) for s in group} for axis in AXES}
    links = [f"[`--{name} {value}`](#{sections[name][value]})" for name, value in settings.items() if name in AXES]
    others = _words({name: value for name, value in settings.items() if name not in AXES})
    return " ".join([*links, f"`{others}`"] if others else links)


def _words(settings):
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in settings.items())


def _flags(spec):
    """Return the table of a component's options."""
    rows = ["| flag | value | default | |", "|---|---|---|---|"]
    for name in spec.options:
        option = all_options()[name]
        needs = f" (with `{option.needs_in_words}`)" if option.needs else ""
        cells = [f"`--{name}`", kind_in_words(option.kind), _default(option.default), option.help + needs]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _default(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind_in_words(kind):
    """Return what values an option of this kind takes."""
    if isinstance(kind, tuple):
        return ", ".join(f"`{choice}`" for choice in kind)
    if kind == "flag":
        return "on or off"
    try:
        KINDS[kind]("no such value")
    except argparse.ArgumentTypeError as error:
        return str(error).split(" is not ", 1)[1]
    return "text"


def _commands(members):
    """Return command lines that use some Specs."""
    lines = []
    for spec in members:
        value = EXAMPLES[spec.more["value"]] if "value" in spec.more else None
        word = spec.name + spec.more.get("example", "") if value is None else f"{spec.name}:{value}"
        size = " --image_size 32" if spec.shelf == "model_name" else ""  # some are too deep for the digits
        needs = {f: able for f, able in requirements(spec).items() if all_options()[f].default not in able}
        needs = "".join(f" --{flag} {able[0]}" for flag, able in needs.items() if flag not in spec.defaults)
        lines.append(f"python fedalg.py --{spec.shelf} {word}{needs}{size}")
        for preset, flags in sorted(spec.presets.items()):
            start = f" --model_name {having('model_name', 'pretrained')[0]}" if flags.get("pretrained") else ""
            lines.append(f"python fedalg.py --algorithm {word} --preset {preset}{start}")
    return lines


def main():
    write_atomic(PAGE, page())
    print(f"{PAGE}: {sum(len(specs(shelf)) for shelf in SHELVES)} components")


if __name__ == "__main__":
    sys.exit(main())
