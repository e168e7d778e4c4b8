"""What a checkpoint of a run must hold to be put into it: every value's kind, size and range, and how they agree.

A checksum tells that a file is as it was written, not that a run wrote it.
"""

from itertools import accumulate

import torch

from fedmerge import wire
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
from fedmerge.declared import mistake
from fedmerge.errors import reason
from fedmerge.simulation.server import BYTES

share, seconds, loss, counts = number(0, 1), number(0), number(), whole()
ALWAYS = {"epoch": whole(1), "clients": counts, "train_seconds": seconds, **dict.fromkeys(BYTES, counts)}
TRAINED = {"train_losses": number(finite=False), "train_accs": share, "kept_share": share}
VALIDATED = {"val_losses": loss, "val_accs": share}  # --no-validation has none
EVALUATED = {"test_losses": loss, "test_accs": share, "eval_seconds": seconds}
SENT = {
    "client_id": counts,
    "n_samples": whole(1),
    "n_steps": counts,
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


def check(run, state):
    """Raise ValueError, which names what is wrong, unless `state` is of a run such as the Experiment."""
    refuse_unless(type(state.get("rows")) is list, "rows are no list")
    fields(_kinds(run, len(state["rows"])), {"frozen": text})(state)
    _check_rows(run.settings, state["rows"], state["traffic"])
    _check_downlink(run.server.downlink, state["downlink"])
    if state["cohort"] is not None:
        refuse_unless(len(state["rows"]) < run.history.n_rounds, "cohort is of a round after the last")
        _check_cohort(run.server, state["cohort"], len(state["rows"]) + 1)


def _kinds(run, n_rows):
    """Return {name: kind} of RunState.state_dict after `n_rows` rounds."""
    server, clients = run.server, range(run.settings.n_clients)
    like = server.theta
    algorithm, compressor, local = (_kept(keeps, server.layout, like, clients) for keeps in run.clients.stateful)
    return {
        **ORIGIN,
        "theta": tensor((server.layout.dim,), like.dtype, like),
        "algorithm": algorithm,
        "compressor": compressor,
        "local": local,
        "downlink": _downlink(server.downlink, n_rows, clients),
        "rows": many(fields(ALWAYS, TRAINED | EVALUATED | VALIDATED)),
        "traffic": mapping(clients, many(counts, 3)),
        "cohort": either(nothing, _cohort(server, clients)),
    }


def _kept(keeps, layout, like, clients):
    """Return the kind of the state_dict() of a component.Stateful."""

    def vector(name):  # finite or not: a client that diverged is only forgotten at the end of its round
        length = keeps.kept_length(name, layout)
        if length is None:
            return either(number(finite=False), truth, tensor(like=like, finite=False))
        return tensor((length,), like.dtype, like, finite=False)

    of_clients = {name: mapping(clients, vector(name)) for name in keeps.of_clients()}
    return fields(of_clients, {name: vector(name) for name in keeps.server_state})


def check_kept(clients, layout, like, n_clients):
    """Raise InputError if a component of the ClientPool keeps what a checkpoint could not give back to it.

    like: a tensor of the model's kind. It is an author's mistake, and better found in the first round than after it.
    """
    for keeps in clients.stateful:
        try:
            _kept(keeps, layout, like, range(n_clients))(keeps.state_dict())
        except ValueError as error:
            raise mistake(keeps, f"keeps what no checkpoint can: {reason(error)}; see `kept_length`") from None


def _downlink(downlink, version, clients):
    """Return the kind of a Downlink's state_dict() of this version."""
    like = downlink.model
    return fields(
        {
            "model": tensor(like.shape, like.dtype, like),
            "version": whole(version, version),
            "buffers_at": whole(0, version),
            "seen": many(either(nothing, whole(0, version)), len(clients)),
            "changed_at": tensor((downlink.n,), torch.int32, like, 0, version),
            "sizes": many(whole(0, wire.dense_bytes(len(like)))),
            "messages": mapping(range(1, version + 1), tensor(dtype=torch.uint8)),
            "copies": mapping(clients, tensor(like.shape, like.dtype, like)),
        }
    )


def _cohort(server, clients):
    """Return the kind of a Cohort's state_dict()."""
    new, like = server.new_sums(), server.theta
    sums = {name: tensor((new.size(name),), like.dtype, like) for name in new.statistics}
    return fields(
        {
            "sums": fields({}, sums),
            "rows": tensor(dtype=like.dtype, like=like, finite=False) if server.keeps_all else nothing,
            "masks": either(nothing, tensor(dtype=torch.bool, like=like)) if server.keeps_all else nothing,
            "down": mapping(clients, counts),
            "done": many(fields(SENT)),
            "seconds": seconds,
        }
    )


def _check_rows(settings, rows, traffic):
    refuse_unless([row["epoch"] for row in rows] == list(range(1, len(rows) + 1)), "rows are not of rounds in order")
    refuse_unless(len(rows) <= settings.n_epochs, "rows are more than rounds")
    columns = EVALUATED.keys() | (VALIDATED.keys() if settings.validation else ())
    refuse_unless(all(len(columns & row.keys()) in (0, len(columns)) for row in rows), "rows lack columns")
    refuse_unless(len(rows) < settings.n_epochs or "test_accs" in rows[-1], "rows end without an evaluation")
    for place, way in enumerate(("bytes_up", "bytes_down"), 1):
        totals = list(accumulate(row[way] for row in rows))
        refuse_unless(totals == [row[f"{way}_total"] for row in rows], f"rows do not add up to {way}_total")
        of_clients = sum(client[place] for client in traffic.values())
        refuse_unless(of_clients == (totals[-1] if totals else 0), f"traffic does not add up to {way}_total")
    refuse_unless(sum(client[0] for client in traffic.values()) >= len(rows), "traffic lacks clients")


def _check_downlink(downlink, state):
    real, mode, n_sizes = downlink.settings.real, downlink.settings.mode, len(state["sizes"])
    most = state["version"] if mode in ("delta", "sparse") else 0
    refuse_unless(n_sizes <= most, "downlink has more broadcasts than rounds")
    refuse_unless(sum(state["sizes"]) <= wire.dense_bytes(len(downlink.model)), "downlink has too large broadcasts")
    newest = range(state["version"] - n_sizes + 1, state["version"] + 1) if real else ()
    refuse_unless(set(state["messages"]) == set(newest), "downlink lacks broadcasts, or has too many")
    known = {client_id for client_id, version in enumerate(state["seen"]) if version is not None}
    keeps_copies = real or mode == "individual"
    refuse_unless(not keeps_copies or known <= set(state["copies"]), "downlink lacks copies of clients")


def _check_cohort(server, state, round):
    ids, lost = server.participants(round)
    done, n = [result["client_id"] for result in state["done"]], len(state["done"])
    refuse_unless(done == ids[:n], "cohort has other clients than the round")
    sizes = [server.sizes[client_id] for client_id in done]
    refuse_unless([r["n_samples"] for r in state["done"]] == sizes, "cohort has clients of other samples")
    refuse_unless(set(done) <= set(state["down"]) <= {*ids, *lost}, "cohort has other downloads than clients")
    for name, length in (("rows", server.algorithm.upload_dim), ("masks", server.layout.n_trainable)):
        refuse_unless(state[name] is None or state[name].shape == (n, length), f"cohort has {name} of another shape")
