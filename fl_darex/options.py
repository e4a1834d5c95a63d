"""Options of what is chosen by name, such as a method: default, range and help, said once.

The configuration, its errors, ``--help`` and the terms on the wire all take them from here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fl_darex.errors import nearest

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting of a method, a coding or an optimizer.

    Attributes:
        default: Its value where nobody says otherwise; its type is the option's type.
        help: What it is, in a few words.
        low: Smallest number allowed; None: any. Also ``above``, which is not allowed itself.
        high: Largest number allowed; None: any. Also ``below``, which is not allowed itself.
        choices: All texts allowed; none: any text.
    """

    default: Scalar
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def checked(self, name: str, value: object) -> Scalar:
        """Return a value of this option's type.

        Raises:
            ValueError: If it is of another type, or not allowed.
        """
        if isinstance(self.default, bool) or isinstance(value, bool):
            if isinstance(self.default, bool) and isinstance(value, bool):
                return value
        elif isinstance(self.default, str):
            if isinstance(value, str) and (not self.choices or value in self.choices):
                return value
        elif isinstance(value, int | float) and abs(value) <= sys.float_info.max:  # no NaN
            whole = isinstance(self.default, int)
            if (not whole or isinstance(value, int)) and self._in_range(value):
                return value if whole else float(value)
        hint = nearest(value, self.choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} = {value!r} is not allowed; it must be {self.words}{hint}")

    @property
    def words(self) -> str:
        """What is allowed, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"one of {', '.join(map(repr, self.choices))}" if self.choices else "text"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        limits = (
            *((" from ", self.low), (" above ", self.above)),
            *((" to ", self.high), (" below ", self.below)),
        )
        return kind + "".join(f"{word}{limit:g}" for word, limit in limits if limit is not None)

    def _in_range(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )


def checked_options(
    owner: str, options: Mapping[str, Option], given: Mapping[str, object]
) -> dict[str, Scalar]:
    """Return every option's value, given or default.

    Args:
        owner: Whose options they are, for errors, such as ``method 'dare'``.
        options: By name.
        given: Values by name; names that are not there take their default.

    Raises:
        ValueError: If a value is not allowed, or there is no such option.
    """
    if odd := sorted(set(given) - set(options)):
        known = ", ".join(sorted(options)) or "none"
        raise ValueError(
            f"{odd[0]!r} is no option of {owner}; its options: {known}{nearest(odd[0], options)}"
        )
    return {
        name: option.checked(name, given.get(name, option.default))
        for name, option in options.items()
    }
