"""--help of a topic: every group and every component has one, with its flags; what is none is a line."""

import re

import pytest

from fedmerge.config.options import OPTIONS, component_options
from fedmerge.config.parser import parse_args
from fedmerge.registry import AXES, specs

COMPONENTS = sorted({(axis, name) for axis in AXES for name in specs(axis)})


def helped(capsys, *topic):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help", *topic])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("title", OPTIONS)
def test_a_group_has_its_flags_and_no_others(capsys, title):
    flags = set(re.findall(r"^  --(\w+)", helped(capsys, *title.split()), re.MULTILINE))
    assert flags == {option.name for option in OPTIONS[title]}


@pytest.mark.parametrize(("axis", "name"), COMPONENTS, ids="-".join)
def test_a_component_has_what_it_is_and_its_flags(capsys, axis, name):
    said = " ".join(helped(capsys, name).split())
    spec = specs(axis)[name]
    assert f"--{axis} {name}: {' '.join(spec.summary.split())}" in said
    for option in component_options().values():
        if option.axis == axis and name in option.owners:
            assert f"--{option.name}" in said
    for other, chosen in spec.defaults.items():
        if other in AXES:
            assert all(
                f"--{o.name}" in said for o in component_options().values() if o.axis == other and chosen in o.owners
            )


def test_without_a_topic_all_is_there(capsys):
    said = helped(capsys)
    assert all(f"--{option.name}" in said for options in OPTIONS.values() for option in options)
    assert len(helped(capsys, "las").splitlines()) < 50


def test_no_topic_is_a_line_with_what_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(["--help", "fedproxy"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "there are experiment, local training, model, server, wire, faults, machine, files, and all components" in said
    )
    assert "fedprox" in said.rpartition("did you mean")[2]
