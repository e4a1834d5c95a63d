"""What a run remembers: every holder of it can say it all, and take it back."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Saveable(Protocol):
    """Holds something that later rounds depend on.

    ``restore(state())`` on a fresh holder with the same settings makes it go on as the old one
    would have, bit for bit. Settings are not state: whoever makes the holder gives them again.
    """

    def state(self) -> dict[str, Any]:
        """Return all of it: numbers, texts, bytes, arrays and containers of these, not shared."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` said.

        Args:
            state: Of a holder of the same kind and settings, in this process or another one.
        """
