"""What a checkpoint of a run must hold to be put into it: every value's kind, size and range, and how they agree.

A checksum tells that a file is as it was written, not that a run wrote it.
"""

from itertools import accumulate

import torch

from fedmerge import merging, wire
from fedmerge.checkpoint.kinds import (
    either,
    fields,
    many,
    mapping,
    named,
    nothing,
    number,
    refuse_unless,
    scalar,
    tensor,
    text,
    truth,
    whole,
)
from fedmerge.simulation import rounds

share, seconds, loss, counts = number(0, 1), number(0), number(), whole()
ALWAYS = {"epoch": whole(1), "clients": counts, "train_seconds": seconds, **dict.fromkeys(rounds.BYTES, counts)}
TRAINED = {"train_losses": number(finite=False), "train_accs": share, "kept_share": share}
EVALUATED = {"val_losses": loss, "val_accs": share, "test_losses": loss, "test_accs": share, "eval_seconds": seconds}
SENT = {
    "number": counts,
    "n_samples": whole(1),
    "bytes": counts,
    "seen": whole(1),
    **dict.fromkeys(("loss", "hits", "total"), scalar),
    "kept": either(counts, scalar),
    "masked": truth,
}


# What tells of which run a state is.
ORIGIN = {
    "settings": named(either(nothing, truth, number(), text)),
    **{"data": text, "split": text, "payload_version": whole(), "code": text},
}


def check_origin(state):
    """Raise ValueError, which names what is wrong, unless `state` tells of which run it is."""
    fields(ORIGIN)({name: state[name] for name in ORIGIN if name in state})


def check(exp, state):
    """Raise ValueError, which names what is wrong, unless `state` is of a run such as fedalg.Experiment `exp`."""
    refuse_unless(type(state.get("rows")) is list, "rows are no list")
    fields(_kinds(exp, len(state["rows"])))(state)
    _check_rows(exp, state["rows"], state["traffic"])
    _check_downlink(exp, state["downlink"])
    if state["cohort"] is not None:
        _check_cohort(exp, state["cohort"], len(state["rows"]))


def _kinds(exp, n_rows):
    """Return {name: kind} of checkpoints.state_of after `n_rows` rounds."""
    layout, like, clients = exp.model.layout, exp.theta, range(exp.args.n_clients)
    return {
        **ORIGIN,
        "theta": tensor((layout.dim,), like.dtype, like),
        "algorithm": _kept(exp.algorithm, layout, like, clients),
        "local": _kept(exp.trainer.local, layout, like, clients),
        "downlink": _downlink(exp.downlink, n_rows, like, clients),
        "rows": many(fields(ALWAYS, TRAINED | EVALUATED)),
        "traffic": mapping(clients, many(counts, 3)),
        "cohort": either(nothing, _cohort(exp, layout, like)),
    }


def _kept(keeps, layout, like, clients):
    """Return the kind of the state() of an options.Stateful."""

    def vector(name):  # finite or not: a client that diverged is only forgotten at the end of its round
        length = keeps.kept_length(name, layout)
        if length is None:
            return either(number(finite=False), truth, tensor(like=like, finite=False))
        return tensor((length,), like.dtype, like, finite=False)

    held = {name: mapping(clients, vector(name)) for name in keeps.held()}
    return fields(held, {name: vector(name) for name in keeps.own})


def _downlink(downlink, version, like, clients):
    """Return the kind of a Downlink's state() of this version."""
    return fields(
        {
            "model": tensor(like.shape, like.dtype, like),
            "version": whole(version, version),
            "seen": many(either(nothing, whole(0, version)), len(clients)),
            "changed_at": tensor((downlink.n,), torch.int32, like, 0, version),
            "sizes": many(whole(0, wire.dense_bytes(len(like)))),
            "messages": mapping(range(1, version + 1), tensor(dtype=torch.uint8)),
            "copies": mapping(clients, tensor(like.shape, like.dtype, like)),
        }
    )


def _cohort(exp, layout, like):
    """Return the kind of a Cohort's state()."""
    sums = {name: tensor((merging.Sums((), layout).size(name),), like.dtype, like) for name in exp.algorithm.means}
    whole_rows = not exp.algorithm.means  # the merge needs all updates, not sums
    return fields(
        {
            "sums": fields({}, sums),
            "deltas": tensor(dtype=like.dtype, like=like, finite=False) if whole_rows else nothing,
            "masks": either(nothing, tensor(dtype=torch.bool, like=like)) if whole_rows else nothing,
            "down": mapping(range(exp.args.n_clients), counts),
            "done": many(fields(SENT)),
            "seconds": seconds,
        }
    )


def _check_rows(exp, rows, traffic):
    refuse_unless([row["epoch"] for row in rows] == list(range(1, len(rows) + 1)), "rows are not of rounds in order")
    refuse_unless(len(rows) <= exp.args.n_epochs, "rows are more than rounds")
    refuse_unless(all(len(EVALUATED.keys() & row.keys()) in (0, len(EVALUATED)) for row in rows), "rows lack columns")
    refuse_unless(len(rows) < exp.args.n_epochs or "val_accs" in rows[-1], "rows end without an evaluation")
    for place, way in enumerate(("bytes_up", "bytes_down"), 1):
        totals = list(accumulate(row[way] for row in rows))
        refuse_unless(totals == [row[f"{way}_total"] for row in rows], f"rows do not add up to {way}_total")
        of_clients = sum(client[place] for client in traffic.values())
        refuse_unless(of_clients == (totals[-1] if totals else 0), f"traffic does not add up to {way}_total")
    refuse_unless(sum(client[0] for client in traffic.values()) >= len(rows), "traffic lacks clients")


def _check_downlink(exp, state):
    real, mode, n_sizes = exp.downlink.real, exp.downlink.mode, len(state["sizes"])
    most = state["version"] if mode in ("delta", "sparse") else 0
    refuse_unless(n_sizes <= most, "downlink has more broadcasts than rounds")
    refuse_unless(sum(state["sizes"]) <= wire.dense_bytes(exp.model.layout.dim), "downlink has too large broadcasts")
    newest = range(state["version"] - n_sizes + 1, state["version"] + 1) if real else ()
    refuse_unless(set(state["messages"]) == set(newest), "downlink lacks broadcasts, or has too many")
    known = {number for number, version in enumerate(state["seen"]) if version is not None}
    keeps_copies = real or mode == "individual"
    refuse_unless(not keeps_copies or known <= set(state["copies"]), "downlink lacks copies of clients")


def _check_cohort(exp, state, n_rows):
    refuse_unless(n_rows < exp.args.n_epochs, "cohort is of a round after the last")
    numbers, lost = rounds.participants(exp, n_rows + 1)
    done, n = [client["number"] for client in state["done"]], len(state["done"])
    refuse_unless(done == numbers[:n], "cohort has other clients than the round")
    sizes = [len(exp.parts[number]) for number in done]
    refuse_unless([client["n_samples"] for client in state["done"]] == sizes, "cohort has clients of other samples")
    refuse_unless(set(done) <= set(state["down"]) <= {*numbers, *lost}, "cohort has other downloads than clients")
    dim, n_trainable = exp.model.layout.dim, exp.model.layout.n_trainable
    for name, length in (("deltas", dim), ("masks", n_trainable)):
        refuse_unless(state[name] is None or state[name].shape == (n, length), f"cohort has {name} of another shape")
