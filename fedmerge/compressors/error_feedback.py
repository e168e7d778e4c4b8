"""What clients did not send, kept for later."""

import torch


class ErrorFeedback:
    """What each client did not send, to be added to its next update (Seide et al. 2014; Stich et al. 2018).

    With a momentum, what is added up are the client's velocities, and the velocity of what was sent is forgotten (Lin
    et al. 2018, sections 3.1 and 3.2). Vectors are [n_trainable]; a client that is not sampled keeps its own.
    """

    def __init__(self, momentum=0.0):
        self.momentum = momentum
        self.left, self.velocity = {}, {}  # client -> vector

    def add(self, number, change):
        """Return what client `number` has to send, its newest `change` included."""
        if self.momentum:
            change = change + self.momentum * self.velocity.get(number, 0)
            self.velocity[number] = change
        self.left[number] = change + self.left.get(number, 0)
        return self.left[number]

    def sent(self, number, arrived, mask):
        """Take off what `arrived` of it, 0 where the `mask` is unset."""
        self.left[number] = self.left[number] - arrived
        if self.momentum:
            self.velocity[number] = torch.zeros_like(arrived) if mask is None else self.velocity[number] * ~mask

    def held(self):
        """Return {kind: {client: vector}}."""
        return {"left": self.left} | ({"update_velocity": self.velocity} if self.momentum else {})
