"""What algorithms, local methods and compressors have in common: options, and what they keep between rounds."""


class Configurable:
    """What takes `options`, a literal dict name -> (default, kind, help[, needs]), added to those it inherits."""

    options = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        inherited = {name: option for base in reversed(cls.__bases__) for name, option in _options_of(base).items()}
        cls.options = inherited | vars(cls).get("options", {})

    def __init__(self, **values):
        """Set an attribute for each option. Raises TypeError for one that there is not."""
        unknown = set(values) - set(self.options)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}")
        for name, (default, *_) in self.options.items():
            setattr(self, name, values.get(name, default))


def _options_of(cls):
    return getattr(cls, "options", {})


def _dense(value):
    """Return the value; of a tensor that is a view with gaps, a copy without."""
    return value.contiguous() if hasattr(value, "contiguous") else value


class Stateful(Configurable):
    """What may keep something between rounds: the server in its attributes `own`, the clients in what `held` has.

    Only `merge` and `broadcast` change what the server keeps; clients may read it as they train, in any process.
    """

    own = ()  # names of attributes: tensors, numbers or None

    def held(self):
        """Return {kind: {client: tensor}}, the dicts themselves: what clients keep."""
        return {}

    def kept_length(self, name, layout):
        """Return how many numbers each tensor has that is kept as `name`, of `own` or `held`; None: any shape will do.

        A checkpoint with others is taken for damaged. layout: the model's models.Layout.
        """

    def forget(self, number):
        """Drop what client `number` keeps: its last update was not finite, and was not merged."""
        for of_client in self.held().values():
            of_client.pop(number, None)

    def state(self):
        """Return {name: tensor or {client: tensor}}: all that is kept between rounds."""
        own = {name: _dense(getattr(self, name)) for name in self.own if getattr(self, name) is not None}
        held = self.held().items()
        return own | {kind: {number: _dense(value) for number, value in of.items()} for kind, of in held}

    def snapshot(self):
        """Return what `check_unchanged` compares with."""
        return {name: (value, getattr(value, "_version", None)) for name, value in vars(self).items()}

    def check_unchanged(self, snapshot, while_, but=()):
        """Raise TypeError if an attribute, but those named in `but`, was set or changed in place since the snapshot.

        while_: in words, when. A checkpoint, or another process of the run, would not know of it.
        """
        for name, (value, version) in self.snapshot().items():
            before = snapshot.get(name, (self, None))
            if name not in but and (value is not before[0] or version != before[1]):
                raise TypeError(
                    f"{type(self).__name__} changed self.{name} {while_}: what the server keeps is named in `own` and "
                    "changed by merge, what clients keep lies in the dicts that `held` returns"
                )

    def load(self, state):
        """Take back what `state()` returned."""
        state = dict(state)
        for name in self.own:
            setattr(self, name, state.get(name))
        for kind, of_client in self.held().items():
            of_client.clear()
            of_client.update(state[kind])
