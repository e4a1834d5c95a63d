"""Tables of what can be chosen by name: methods, codings, policies; the package's own and others'.

A name is a row of a table. ``"package.module:attribute"`` is somebody's own, imported and added to
the table; only a configuration may say so, never a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, TypeVar

from fl_darex.errors import ConfigError, nearest


class Named(Protocol):
    """Something that has a name of its own."""

    @property
    def name(self) -> str:
        """The name by which it is chosen, and by which messages call it."""


Row = TypeVar("Row", bound=Named)


class Registry(Mapping[str, Row]):
    """Rows by name.

    Args:
        what: What a row is called in errors, such as ``"method"``.
        kind: The class of every row, or the protocol.
        rows: The package's own.

    Attributes:
        first: These, whatever is added later.
    """

    def __init__(self, what: str, kind: type, rows: Iterable[Row] = ()) -> None:
        self._what, self._kind = what, kind
        self.first: Mapping[str, Row] = {row.name: row for row in rows}
        self._rows = dict(self.first)

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> Row:
        """Add a row and return it; the same class of row may come again.

        Raises:
            ConfigError: If it is no such row, or another row has its name.
        """
        self.check(row)
        self._rows[row.name] = row
        return row

    def check(self, row: Row) -> None:
        """Raise `ConfigError` if something cannot be added."""
        # A class has all that a protocol asks of an object.
        if isinstance(row, type) or not isinstance(row, self._kind):
            kind = f"{self._kind.__module__}.{self._kind.__name__}"
            raise ConfigError(f"{self._what} {row!r} is no object of a class derived from {kind}")
        name = getattr(row, "name", None)
        if not isinstance(name, str) or not name or ":" in name:
            raise ConfigError(
                f"{self._what} {type(row).__qualname__} has the name {name!r}; a name is text, and "
                "has no colon"
            )
        taken = self._rows.get(name)
        if taken is not None and type(taken) is not type(row):
            raise ConfigError(
                f"{self._what} {name!r} is there already, as {type(taken).__qualname__}; give "
                f"{type(row).__qualname__} another name"
            )

    def choose(self, name: str) -> Row:
        """Return the row of a name, or import and add ``"package.module:attribute"``.

        Raises:
            ConfigError: If there is no such row, or nothing can be imported.
        """
        if ":" in name:
            found = load(name, self._what)
            return self.add(_made(name, found, self._what) if isinstance(found, type) else found)
        if name not in self._rows:
            raise ConfigError(
                f"{self._what} {name!r} is not known; known: {', '.join(sorted(self._rows))}"
                f"{nearest(name, self._rows)}; an own one is 'package.module:name'"
            )
        return self._rows[name]


def load(reference: str, what: str) -> Any:
    """Return what ``"package.module:attribute"`` names.

    Args:
        reference: The module has to be importable where the run's processes start.
        what: What it is called in errors.

    Raises:
        ConfigError: If there is no such module or attribute, or the module fails.
    """
    name, _, attribute = reference.partition(":")
    try:
        module = import_module(name)
    except Exception as error:  # the module is somebody's own and may raise anything
        raise ConfigError(f"{what} {reference!r} cannot be imported: {_line(error)}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{what} {reference!r}: {name} has no {attribute!r}")
    return getattr(module, attribute)


def _made(reference: str, kind: type[Any], what: str) -> Any:
    try:
        return kind()
    except Exception as error:  # likewise
        raise ConfigError(f"{what} {reference!r} cannot be made: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
