"""Sparse updates stitched together."""

from fedmerge.registry import merging_rule

TINY = 1e-30  # less than the share of any client


@merging_rule(
    "stitch",
    title="stitch",
    paper="He et al. 2024",
    needs=("update", "mask"),
    weighted=True,
    options={
        "stitch": (
            "overlap",
            ("overlap", "all", "prior"),
            "divide a weight's updates by the clients that kept it, by all, or by the former and a part of the others",
        ),
        "stitch_prior": (0.5, "share", "that part", "stitch=prior"),
    },
)
def stitch(aggregate, layout, stitch, stitch_prior):
    """a weight moves by the mean of the clients that sent it (He et al. 2024, with the clients' weights)

    Each of the others counts as a `prior` of a vote for leaving it: 0 for overlap, 1 for all, which is the mean, or
    stitch_prior. A weight that nobody sent stays. Buffers [dim - n_trainable] are averaged over all clients.

    Differs from the paper: they take the plain mean, which is --weighting uniform.
    """
    step, prior = aggregate.mean["update"], {"overlap": 0.0, "all": 1.0, "prior": stitch_prior}[stitch]
    if prior != 1:
        # Nobody kept a weight: its update is 0, and stays so whatever it is divided by.
        votes = aggregate.mean["mask"].mul_(1 - prior).add_(prior).clamp_min_(TINY)
        step[: layout.n_trainable].div_(votes)
    return step
