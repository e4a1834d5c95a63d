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
        rows: The package's own.
    """

    def __init__(self, what: str, rows: Iterable[Row] = ()) -> None:
        self._what = what
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> Row:
        """Add a row and return it; the same class of row may come again.

        Raises:
            ConfigError: If another row has its name.
        """
        taken = self._rows.get(row.name)
        if taken is not None and type(taken) is not type(row):
            raise ConfigError(
                f"{self._what} {row.name!r} is there already, as {type(taken).__qualname__}; give "
                f"{type(row).__qualname__} another name"
            )
        self._rows[row.name] = row
        return row

    def choose(self, name: str) -> Row:
        """Return the row of a name, or import and add ``"package.module:attribute"``.

        Raises:
            ConfigError: If there is no such row, or nothing can be imported.
        """
        if ":" in name:
            found = load(name, self._what)
            return self.add(found() if isinstance(found, type) else found)
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
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except AttributeError:
        raise ConfigError(f"{what} {reference!r}: {module} has no {attribute!r}") from None
    except Exception as error:  # the module is somebody's own and may raise anything
        raise ConfigError(
            f"{what} {reference!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
