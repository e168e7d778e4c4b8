"""One flag. Nothing here imports torch."""

from dataclasses import dataclass

from fedmerge.registry import find, specs


@dataclass(frozen=True)
class Option:
    """One flag. `kind` names an entry of KINDS, is a tuple of choices, or is "flag" (--x / --no-x)."""

    name: str
    default: object
    kind: object
    help: object  # text, or a function that returns it: of what is registered
    named: bool = True  # whether it changes the result, and so belongs into the run's name
    # "option=value" or "option=value|value": has no effect otherwise; "option": if at its default; or a function that
    # returns such a text, of what is registered
    needs: object = ""
    axis: str = ""  # the flag that chooses the components which have it, if not all runs do
    owners: tuple = ()  # these components

    @property
    def needs_in_words(self):
        return f"--{self.needs.replace('=', ' ').replace('|', ' or ')}"

    @property
    def owners_in_words(self):
        return f"--{self.axis} {' or '.join(specs(self.axis)[name].shown for name in self.owners)}"

    def is_of(self, name):
        """Tell whether the component that `name` chooses has it."""
        spec = find(self.axis, name)
        return spec is not None and spec.name in self.owners
