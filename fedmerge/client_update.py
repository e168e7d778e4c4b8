"""What one client sends."""


class ClientUpdate:
    """delta [dim]: trained minus received, 0 where the mask is unset; mask, bool [n_trainable]: the weights that are
    sent, None for all. Vectors that an algorithm sends besides are attributes, as in
    `ClientUpdate(delta, control=c).control`.
    """

    __slots__ = ("delta", "mask", "more")

    def __init__(self, delta, mask=None, **more):
        self.delta, self.mask, self.more = delta, mask, more

    def __getattr__(self, name):
        if name != "more" and name in self.more:
            return self.more[name]
        raise AttributeError(f"the update holds no {name}")
