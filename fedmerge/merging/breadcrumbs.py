"""Updates without their smallest changes, and without the very largest."""

from fedmerge.registry import merging_rule


@merging_rule(
    "breadcrumbs",
    title="Model Breadcrumbs",
    paper="Davari & Belilovsky 2024",
    needs="all updates",
    weighted=True,
    options={
        "breadcrumbs_keep": (0.15, "share", "share of each layer's changes that counts"),
        "breadcrumbs_outliers": (0.01, "half", "share of each layer's changes that are left out as too large"),
        "breadcrumbs_scale": (1.0, "positive", "alpha: what the mean is multiplied by"),
    },
)
def breadcrumbs(aggregate, layout, breadcrumbs_keep, breadcrumbs_outliers, breadcrumbs_scale):
    """the mean of updates whose outliers and small changes are masked, layer by layer (Davari & Belilovsky 2024)

    At least one change of a layer counts; outliers are left out as far as that leaves enough. Buffers are averaged.

    Differs from the paper: the mean, not the sum, is scaled, so that alpha does not depend on the number of clients.
    """
    deltas, n = aggregate.deltas, layout.n_trainable
    for delta in deltas[:, :n]:
        for part in delta.split(layout.sizes):
            k = max(1, round(breadcrumbs_keep * len(part)))
            larger = min(int(breadcrumbs_outliers * len(part)), len(part) - k)
            order = part.abs().argsort(descending=True, stable=True)
            part[order[:larger]] = 0
            part[order[larger + k :]] = 0
    step = aggregate.shares(deltas) @ deltas
    step[:n] *= breadcrumbs_scale
    return step
