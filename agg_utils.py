"""The server's merge of what a round's clients sent: refuse what is not finite, weigh, merge.

The algorithms are in fedmerge/algorithms/, the rules by which updates are merged in fedmerge/merging/.
"""

import sys

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.client_update import ClientUpdate
from fedmerge.component import own_memory
from fedmerge.declared import check_vector, mistake
from fedmerge.merging.products import merge_products
from fedmerge.registry import ALGORITHMS, MERGING_RULES

__all__ = ["ALGORITHMS", "MERGING_RULES", "ClientUpdate", "FedAvg", "merge"]


def merge(server, clients, cohort):
    """Merge what the Cohort sent into server.theta; return the columns {name: figure} that tell of it.

    What is not finite ends the run by a FloatingPointError, before anything is merged, or, with --on_nan skip, is left
    out, and its client forgets what it kept. Where nothing arrived, the model stays as it is.
    """
    figures, faults = cohort.faults()
    if faults and server.settings.on_nan == "stop":
        raise FloatingPointError(f"{next(iter(faults.values()))}; try a smaller --lr, or --on_nan skip")
    for i, fault in faults.items():
        print(f"warning: {fault}: left out", file=sys.stderr)
        clients.forget(cohort.done[i].client_id)
    whole = [i for i in range(len(cohort.done)) if i not in faults]
    if not whole:
        server.warn_of_old_statistics(cohort.round)
        return {"clients": 0}
    before = server.algorithm.snapshot()
    aggregate = server.aggregate(cohort, whole)
    dim = server.layout.dim
    step = check_vector(server.rule(aggregate), server.theta, dim, server.rule.func, "the step")
    if server.settings.lora_merge == "products":
        step = merge_products(step, aggregate, server.theta, server.layout)
    version = server.theta._version
    theta = server.algorithm.merge(server.theta, step, aggregate)
    if server.theta._version != version:  # clients have it, or will be told how it differs
        raise mistake(server.algorithm, "merge changed theta in place: return a new one, such as theta + step")
    check_vector(theta, server.theta, dim, server.algorithm, "the model from merge")
    server.algorithm.check_unchanged(before, "as the server merged", but=server.algorithm.server_state)
    server.algorithm.check_step_not_kept(step, theta)
    lent = () if cohort.rows is None else (cohort.rows,)
    server.algorithm.keep_copies(lent)
    server.theta = own_memory(theta, lent)
    losses, hits = figures[whole].sum(0).tolist()
    seen, kept = (sum(int(getattr(cohort.done[i], name)) for i in whole) for name in ("seen", "kept"))
    return {
        "train_losses": losses / seen,
        "train_accs": hits / seen,
        "kept_share": kept / (len(whole) * server.layout.n_trainable),
        "clients": len(whole),
    }
