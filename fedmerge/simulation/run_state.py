"""What a run holds between two clients, as a checkpoint has it. Randomness is keyed, so that no generator's state
belongs into it.
"""

import os
import sys

from fedmerge import partitions, provenance, wire
from fedmerge.config.run_name import differing_settings, settings_of
from fedmerge.errors import InputError, reason
from fedmerge.simulation import state_checks


class RunState:
    """What a CheckpointPolicy saves of an Experiment."""

    def __init__(self, run):
        self.run, self.n_rounds = run, run.history.n_rounds

    @property
    def n_done(self):
        return self.run.history.n_done

    def place(self):
        """Return in words how far the run is."""
        cohort = self.run.server.cohort
        return f"round {self.n_done + 1}, {cohort.progress()}" if cohort else f"round {self.n_done}"

    def state_dict(self):
        """Return {name: tensors and plain values}, between two clients, or two rounds."""
        run, server = self.run, self.run.server
        algorithm, compressor, local = run.clients.stateful
        return {
            "settings": settings_of(run.settings),
            "data": run.splits.fingerprint,
            "split": partitions.partition_hash(run.clients.parts),
            "payload_version": wire.VERSION,
            "code": provenance.code_hash(vars(run.settings)),
            "theta": server.theta,
            "algorithm": algorithm.state_dict(),
            "compressor": compressor.state_dict(),
            "local": local.state_dict(),
            "downlink": server.downlink.state_dict(),
            "rows": run.history.rows,
            "traffic": server.traffic,
            "cohort": server.cohort and server.cohort.state_dict(),
            **({"frozen": run.model.frozen_crc} if run.model.frozen_crc else {}),
        }


def resume(run, checkpoints):
    """Put the newest whole checkpoint into the run; return the settings {name: value} that made it, None without one.

    Raises InputError if it is of other settings, of another split or version, or if all there are are damaged.
    """
    for path, state in checkpoints.load(run.device):
        try:
            state_checks.check_origin(state)
            settings, split, version = state["settings"], state["split"], state["payload_version"]
            samples = state["data"]
            differing = differing_settings(run.settings, settings)
            differing += [
                name for name in ("wire", "metrics_dir") if _at(name, settings) != _at(name, vars(run.settings))
            ]
        except (KeyError, TypeError, ValueError) as error:
            print(f"warning: {path} is damaged ({reason(error)})", file=sys.stderr)
            continue
        for name in differing:
            mine, other = getattr(run.settings, name), settings.get(name)
            raise InputError(
                f"{path} is of a run with {name} = {other}, not {mine}: another --checkpoint_dir, or --fresh"
            )
        _check_origin(run, path, split, version, samples, state.get("frozen", ""))
        try:
            _restore(run, state)
        except ValueError as error:
            print(f"warning: {path} is damaged ({reason(error)})", file=sys.stderr)
            continue
        if state.get("code") != provenance.code_hash(vars(run.settings)):
            print(f"warning: {path} was left by another version of the code; --fresh starts over", file=sys.stderr)
        return settings
    if checkpoints.exist():
        raise InputError(f"{checkpoints.newest}: no checkpoint of this run is whole: --fresh starts it over")
    return None


def _check_origin(run, path, split, version, samples, frozen):
    """Raise InputError unless what a state says of its origin is so of the run."""
    for said, so, what in (
        (samples, run.splits.fingerprint, f"on other files of {run.settings.dataset}: move it away, or"),
        (split, partitions.partition_hash(run.clients.parts), "on another split of the data: move it away, or"),
        (version, wire.VERSION, "of a version that counted bytes otherwise:"),
        (frozen, run.model.frozen_crc, "whose weights that are not trained are others:"),
    ):
        if said != so:
            raise InputError(f"{path} is of a run {what} --fresh")


def _at(name, settings):
    """Return a setting; a folder wherever it is named from, and by whatever name."""
    return os.path.realpath(settings[name]) if name.endswith("_dir") else settings[name]


def _restore(run, state):
    """Put the state into the run, all of it, or raise ValueError and nothing of it."""
    state_checks.check(run, state)
    server = run.server
    server.downlink.load_state_dict(state["downlink"])
    server.theta = state["theta"]
    for name, keeps in zip(("algorithm", "compressor", "local"), run.clients.stateful, strict=True):
        keeps.load_state_dict(state[name])
    run.history.rows = [dict(row) for row in state["rows"]]
    server.traffic = {client: list(counts) for client, counts in state["traffic"].items()}
    server.cohort = None
    if state["cohort"] is not None:
        server.cohort = server.begin(run.history.n_done + 1)
        server.cohort.load_state_dict(state["cohort"])
