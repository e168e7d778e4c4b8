"""What of a vector crosses the wire: all of it, or all but what stays with the clients."""

import torch

from fedmerge.client_update import ClientUpdate


class Crossing:
    """Leaves out of a vector the numbers that stay with the clients, and puts others in their places.

    n_weights, n_buffers: how many weights, and buffers behind them, cross.
    """

    def __init__(self, own: torch.Tensor | None, layout, start: torch.Tensor):
        """own: the places in a vector [dim] that stay, ascending, or None; start [dim]: what is in them at the server.

        The server never learns them: they are in all its models what they were in the first one.
        """
        n = layout.n_trainable
        self.own = own if own is not None and len(own) else None
        self.n_weights, self.n_buffers = n, layout.dim - n
        self._places = {}  # length -> the places in a vector of it that cross
        if self.own is not None:
            self.own = self.own.to(start.device)
            self.fixed = start[self.own].clone()
            self.n_weights -= int((self.own < n).sum())
            self.n_buffers -= int((self.own >= n).sum())

    def _crossing(self, length):
        """Return the places that cross in a vector of a length, ascending; what follows the model does.

        They are numbers, found once: to look for them in a mask would wait for the device with every client.
        """
        if length not in self._places:
            inside = self.own[self.own < length]
            stays = torch.zeros(length, dtype=torch.bool, device=self.own.device).index_fill_(0, inside, True)
            self._places[length] = (~stays).nonzero().view(-1)
        return self._places[length]

    def out(self, vector: torch.Tensor) -> torch.Tensor:
        """Return what crosses of a vector [dim] or longer."""
        return vector if self.own is None else vector.index_select(0, self._crossing(len(vector)))

    def update_out(self, update: ClientUpdate, n_trainable: int) -> ClientUpdate:
        """Return what crosses of an update whose delta has, behind the model, all that is sent besides."""
        if self.own is None:
            return update
        mask = None if update.mask is None else update.mask.index_select(0, self._crossing(n_trainable))
        return ClientUpdate(self.out(update.delta), mask)

    def whole(self, received: torch.Tensor) -> torch.Tensor:
        """Return the vector of which `received` crossed, with those of the first model where clients have their own."""
        if self.own is None:
            return received
        vector = received.new_empty(len(received) + len(self.own))
        return vector.index_copy_(0, self._crossing(len(vector)), received).index_copy_(0, self.own, self.fixed)

    def unpack(self, message, row: torch.Tensor, n_trainable: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Write what a Message of an update brings into `row`, zeros where nothing crosses; return it and its mask."""
        if self.own is None:
            return message.unpack(row), message.mask
        arrived = message.unpack(row.new_empty(len(row) - len(self.own)))
        row.index_copy_(0, self._crossing(len(row)), arrived).index_fill_(0, self.own, 0)
        if message.mask is None:
            return row, None
        mask = torch.zeros(n_trainable, dtype=torch.bool, device=row.device)
        return row, mask.index_copy_(0, self._crossing(n_trainable), message.mask)
