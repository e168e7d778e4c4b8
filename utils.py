"""The command line, settings and the names of runs: what there is to them is in fedmerge/config/."""

from fedmerge.config.parser import build_parser, parse_args
from fedmerge.config.resolve import resolve
from fedmerge.config.run_name import run_name, settings_of
from fedmerge.errors import InputError

__all__ = ["InputError", "build_parser", "parse_args", "resolve", "run_name", "settings_of"]
