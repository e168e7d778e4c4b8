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

    def add(self, client_id, change):
        """Return what the client has to send, its newest `change` included."""
        if self.momentum:
            change = change + self.momentum * self.velocity.get(client_id, 0)
            self.velocity[client_id] = change
        self.left[client_id] = change + self.left.get(client_id, 0)
        return self.left[client_id]

    def sent(self, client_id, arrived, mask):
        """Take off what `arrived` of it, 0 where the `mask` is unset."""
        self.left[client_id] = self.left[client_id] - arrived
        if self.momentum:
            self.velocity[client_id] = torch.zeros_like(arrived) if mask is None else self.velocity[client_id] * ~mask

    def of_clients(self):
        """Return {name: {client: vector}}, all that is kept."""
        return {"left": self.left} | ({"update_velocity": self.velocity} if self.momentum else {})
