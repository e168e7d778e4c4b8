"""What algorithms, local methods and compressors have in common: options, and what they keep between rounds."""

from fedmerge.declared import mistake


class Configurable:
    """What takes `options`, a literal dict name -> (default, kind, help[, needs]), added to those it inherits."""

    options = {}
    optional_hooks = {}  # name -> the arguments of what is None unless a class has it

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


def shares_memory(tensor, other) -> bool:
    """Tell whether two tensors are parts of one allocation."""
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def own_memory(tensor, lent):
    """Return a tensor, or a copy if it lies in the memory of one of the tensors `lent`, which the program writes to
    again, or is a part of a larger one, which stayed in memory with it.
    """
    larger = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if larger or any(shares_memory(tensor, other) for other in lent) else tensor


def _inside(value):
    """Return a value, and what it holds, if it is a container."""
    if isinstance(value, dict):
        return [value, *value.keys(), *value.values()]
    return [value, *value] if isinstance(value, list | tuple | set) else [value]


class Stateful(Configurable):
    """What may keep something between rounds.

    server_state: names of attributes, tensors, numbers or None, that the server keeps. Only what runs at the server
    changes them; clients may read them as they train, in any process. client_state: names of attributes {client:
    tensor}, empty at first, that clients keep.
    """

    server_state = ()
    client_state = ()

    def __init__(self, **options):
        super().__init__(**options)
        for name in self.server_state:
            setattr(self, name, None)
        for name in self.client_state:
            setattr(self, name, {})

    def of_clients(self) -> dict:
        """Return {name: {client: tensor}}, the dicts themselves: what clients keep."""
        return {name: getattr(self, name) for name in self.client_state}

    def kept_length(self, name: str, layout) -> int | None:
        """Return how many numbers each tensor has that is kept as `name`; None: any shape will do.

        A checkpoint with others is taken for damaged, and room is looked for beforehand where the length is known.
        layout: the model's networks.Layout.
        """

    def forget(self, client_id: int) -> None:
        """Drop what a client keeps: its last update was not finite, and was not merged."""
        for of_client in self.of_clients().values():
            of_client.pop(client_id, None)

    def state_dict(self) -> dict:
        """Return {name: tensor or {client: tensor}}: all that is kept between rounds."""
        kept = {name: getattr(self, name) for name in self.server_state}
        server = {name: _dense(value) for name, value in kept.items() if value is not None}
        clients = self.of_clients().items()
        return server | {name: {client: _dense(value) for client, value in of.items()} for name, of in clients}

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict()` returned."""
        state = dict(state)
        for name in self.server_state:
            setattr(self, name, state.get(name))
        for name, of_client in self.of_clients().items():
            of_client.clear()
            of_client.update(state[name])

    def keep_copies(self, lent, client_id=None) -> None:
        """Move what was just kept, of a client or of the server, into memory of its own; see `own_memory`."""
        if client_id is None:
            places = [(vars(self), name) for name in self.server_state]
        else:
            places = [(of, client_id) for of in self.of_clients().values() if client_id in of]
        for holder, key in places:
            if hasattr(holder[key], "untyped_storage"):
                holder[key] = own_memory(holder[key], lent)

    def check_step_not_kept(self, step, theta) -> None:
        """Raise InputError if `merge` made the model `theta` in the memory of `step`, and keeps a part of `step`, which
        changed with it.
        """
        for name in self.server_state if shares_memory(theta, step) else ():
            if hasattr(getattr(self, name), "untyped_storage") and shares_memory(getattr(self, name), step):
                raise mistake(self, f"merge keeps a part of `step` as self.{name}, and makes the model in it: .clone()")

    def snapshot(self):
        """Return what `check_unchanged` compares with: {attribute: [(value, its version), what is in it too]}."""
        return {name: [(v, getattr(v, "_version", None)) for v in _inside(value)] for name, value in vars(self).items()}

    def check_unchanged(self, snapshot, while_, but=()):
        """Raise InputError if an attribute, but those named in `but`, was set or changed in place since the snapshot.

        while_: in words, when. A checkpoint, or another process of the run, would not know of it.
        """
        but = {*but, *self.client_state}
        for name, now in self.snapshot().items():
            before = snapshot.get(name, ())
            pairs = zip(now, before, strict=False)
            same = len(now) == len(before) and all(a is b and v == w for (a, v), (b, w) in pairs)
            if name not in but and not same:
                raise mistake(
                    self,
                    f"changed self.{name} {while_}: what the server keeps is named in `server_state` and changed by "
                    "merge, what clients keep is named in `client_state`",
                )
