"""The head trained before the body."""

from fedmerge.errors import InputError
from fedmerge.local_methods.base import LocalMethod
from fedmerge.registry import local_method


@local_method("head_first", requires={"trainable": ("all", "norms", "bias", "lora")})
class HeadFirst(LocalMethod):
    """the last layer alone, then all others under it (Collins et al. 2021, Algorithm 1)

    The body is trained for --n_client_epochs, each of the two by an optimiser that begins anew, for at most
    --local_steps.
    """

    options = {"head_epochs": (1, "count", "epochs of the last layer")}

    def __call__(self, client, start, correction):
        layout, weights = client.model.layout, client.model.trainable
        if not layout.head or layout.head[0] == 0:
            raise InputError("--local head_first needs a last layer and others below it that are trained")
        begin = layout.head[0]  # it ends where the weights end

        def part(place):
            return correction and (lambda w: correction(weights)[place])

        for place, epochs, model in (
            (slice(begin, None), self.head_epochs, 1),
            (slice(begin), client.settings.epochs, 0),
        ):
            for _ in self.run(client, epochs, part(place), model, w=weights[place]):
                pass
