"""Help that fits on a screen: `--help wire` for a group of flags, `--help las` for a component and its own."""

import argparse
import re
import textwrap

from fedmerge.errors import did_you_mean
from fedmerge.registry import AXES, specs


def component_lines(name=None):
    """Return what components are: a paragraph each, as far as a help text has lines. name: of those called so only."""

    def flags(settings):
        return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in settings.items())

    lines = []
    for axis in AXES:
        for known, spec in sorted(specs(axis).items()):
            if name in (None, known):
                set_by_it = f" [{flags(spec.defaults)}]" if spec.defaults else ""
                lines.append(f"--{axis} {known}: {spec.summary}{set_by_it}")
                lines += [
                    f"--{axis} {known} --preset {p}: {flags(values)}" for p, values in sorted(spec.presets.items())
                ]
    return [part for line in lines for part in textwrap.wrap(line, 116, subsequent_indent="    ")]


class HelpByTopic(argparse.Action):
    """show this, or what there is on a topic: wire, local training, las, ..."""

    def __init__(self, option_strings, dest, help=None, **_):
        super().__init__(option_strings, argparse.SUPPRESS, nargs="*", metavar="TOPIC", help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        if not values:
            parser.print_help()
        else:
            print(topic_help(parser, " ".join(values)), end="")
        parser.exit()


def topic_help(parser, topic):
    """Return the help on a topic: groups of flags with this title or word in it, components of this name.

    Ends the program as a mistake does if there is none.
    """
    titles = {group.title: group for group in parser._action_groups if group.title and group._group_actions}

    components = [spec for axis in AXES for name, spec in specs(axis).items() if name == topic]
    wanted = {topic} | {str(spec.defaults[axis]) for spec in components for axis in AXES if axis in spec.defaults}

    def about(title):
        return topic.lower() == title or wanted & set(re.findall(r"[\w./]+", title))

    lines = component_lines(topic)
    chosen = [group for title, group in titles.items() if about(title)]
    if not chosen and not lines:
        names = {word for title in titles for word in (title, *title.split()) if not title.startswith("only with")}
        names |= {name for axis in AXES for name in specs(axis)}
        general = ", ".join(title for title in titles if not title.startswith(("only with", "options", "what is not")))
        parser.error(f"--help {topic}: no topic; there are {general}, and all components{did_you_mean(topic, names)}")
    formatter = parser._get_formatter()
    for group in chosen:
        formatter.start_section(group.title)
        formatter.add_text(group.description)
        formatter.add_arguments(group._group_actions)
        formatter.end_section()
    return "\n".join(lines) + "\n" * bool(lines) + "\n" * bool(lines and chosen) + formatter.format_help()
