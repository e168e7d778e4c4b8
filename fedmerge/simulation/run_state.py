"""What a run holds between two clients, as a checkpoint has it. Randomness is keyed, so that no generator's state
belongs into it.
"""

import os
import sys

from fedmerge import partitions, provenance, wire
from fedmerge.config.run_name import differing_settings, settings_of
from fedmerge.errors import InputError, reason
from fedmerge.simulation import rounds, state_checks


def state_of(exp):
    """Return the state {name: tensors and plain values} of a fedalg.Experiment between two clients, or two rounds."""
    return {
        "settings": settings_of(exp.args),
        "data": exp.splits.fingerprint,
        "split": partitions.partition_hash(exp.parts),
        "payload_version": wire.VERSION,
        "code": provenance.code_hash(vars(exp.args)),
        "theta": exp.theta,
        "algorithm": exp.algorithm.state(),
        "local": exp.trainer.local.state(),
        "downlink": exp.downlink.state(),
        "rows": exp.rows,
        "traffic": exp.traffic,
        "cohort": exp.cohort and exp.cohort.state(),
    }


def resume(exp, checkpoints):
    """Put the newest whole checkpoint into `exp`; return the settings {name: value} it was made with, None without one.

    Raises InputError if it is of other settings, of another split or version, or if all there are are damaged.
    """
    for path, state in checkpoints.load(exp.device):
        try:
            state_checks.check_origin(state)
            settings, split, version = state["settings"], state["split"], state["payload_version"]
            samples = state["data"]
            differing = differing_settings(exp.args, settings)
            differing += [name for name in ("wire", "metrics_dir") if _at(name, settings) != _at(name, vars(exp.args))]
        except (KeyError, TypeError, ValueError) as error:
            print(f"warning: {path} is damaged ({reason(error)})", file=sys.stderr)
            continue
        for name in differing:
            mine, other = getattr(exp.args, name), settings.get(name)
            raise InputError(
                f"{path} is of a run with {name} = {other}, not {mine}: another --checkpoint_dir, or --fresh"
            )
        if samples != exp.splits.fingerprint:
            raise InputError(f"{path} is of a run on other files of {exp.args.dataset}: move it away, or --fresh")
        if split != partitions.partition_hash(exp.parts):
            raise InputError(f"{path} is of a run on another split of the data: move it away, or --fresh")
        if version != wire.VERSION:
            raise InputError(f"{path} is of a version that counted bytes otherwise: --fresh")
        try:
            _restore(exp, state)
        except ValueError as error:
            print(f"warning: {path} is damaged ({reason(error)})", file=sys.stderr)
            continue
        if state.get("code") != provenance.code_hash(vars(exp.args)):
            print(f"warning: {path} was left by another version of the code; --fresh starts over", file=sys.stderr)
        return settings
    if checkpoints.exist():
        raise InputError(f"{checkpoints.newest}: no checkpoint of this run is whole: --fresh starts it over")
    return None


def _at(name, settings):
    """Return a setting; a folder wherever it is named from, and by whatever name."""
    return os.path.realpath(settings[name]) if name.endswith("_dir") else settings[name]


def _restore(exp, state):
    """Put the state into `exp`, all of it, or raise ValueError and nothing of it."""
    state_checks.check(exp, state)
    exp.downlink.load(state["downlink"])
    exp.theta = state["theta"]
    exp.algorithm.load(state["algorithm"])
    exp.trainer.local.load(state["local"])
    exp.rows = [dict(row) for row in state["rows"]]
    exp.traffic = {client: list(counts) for client, counts in state["traffic"].items()}
    rounds.resume_round(exp, state["cohort"])
