"""FedAvg of normalised updates."""

from fedmerge.algorithms.fedavg import FedAvg
from fedmerge.local_training.settings import gradients_of
from fedmerge.registry import algorithm


@algorithm(
    "fednova",
    title="FedNova",
    paper="Wang et al. 2020",
    requires={"local": "one_run", "local_optimizer": ("sgd",), "merge": "weighted"},
)
class FedNova(FedAvg):
    """clients that take more steps weigh no more (normalised averaging, Wang et al. 2020, Eq. 8 and section 5)

    An update counts a_i times less, the norm of the coefficients of the gradients that it is made of; the merged step
    is as many times longer as the clients' weighted mean of a_i. Buffers are averaged by the same weights.
    """

    def client_weight(self, result, weight):
        return weight / gradients_of(result.n_steps, self.run.momentum)

    def merge(self, theta, step, aggregate):
        lengths = [gradients_of(one.n_steps, self.run.momentum) for one in aggregate.arrived]
        shares = [one.weight * a for one, a in zip(aggregate.arrived, lengths, strict=True)]  # the clients' weights
        mean_length = sum(p * a for p, a in zip(shares, lengths, strict=True)) / sum(shares)
        step[: self.layout.n_trainable] *= mean_length * sum(one.weight for one in aggregate.arrived) / sum(shares)
        return super().merge(theta, step, aggregate)
