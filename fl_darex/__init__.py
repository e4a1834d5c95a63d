"""fl-darex: federated fine-tuning that sends 1 % of each update, or less.

Importing this package costs numpy alone; everything heavier is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# A checkout and a Flower bundle keep strategies/ and clients/ beside this folder; a wheel ships
# them inside it. This gives them one import name, fl_darex.*, in all three.
if not (Path(__file__).parent / "strategies").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from fl_darex.optim import AdamR as AdamR
    from fl_darex.simulation import simulate as simulate

_LAZY = {"AdamR": "fl_darex.optim", "simulate": "fl_darex.simulation"}

__all__ = ["AdamR", "__version__", "simulate"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
