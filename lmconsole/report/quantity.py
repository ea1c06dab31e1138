"""A number of the report that has a LaTeX command."""

from collections.abc import Sequence
from dataclasses import dataclass

Values = dict[tuple[str, ...], str]
"""Values by the arguments of a command; a number is written as in the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A command ``\\lm…``, which takes as many arguments as each key of ``values`` has."""

    name: str
    arguments: Sequence[str]
    """Meaning of each argument."""
    meaning: str
    """Meaning of the number, with its unit."""
    values: Values

    @property
    def usage(self) -> str:
        """The command with its arguments: ``\\lmValidPpl{experiment}``."""
        return f"\\{self.name}{''.join(f'{{{argument}}}' for argument in self.arguments)}"
