"""Modules of an app, loaded from its own folder and forgotten after its run.

Apps are written for a process of their own: most have a ``task.py`` or a ``client_app.py``, and
which one Python means is a matter of who was first. Inside `imported_from` it is the app's.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from flwr.app import Context, Message

from fl_darex.errors import ConfigError, EngineError, nearest

_BUSY = threading.RLock()
_inside: list[str] = []  # folders of apps that this process is in, the innermost last


@contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Let Python find modules of a folder first, and no others of their names.

    Modules of these names that come from elsewhere are set aside, and put back afterwards, when
    those of the folder are forgotten: the next app, or the same again, begins anew. What was
    imported from the folder before stays as it is.

    Args:
        folder: The app's, absolute.

    Raises:
        EngineError: If another thread is in here: modules belong to the whole process.
    """
    if not _BUSY.acquire(blocking=False):
        raise EngineError(
            f"the app in {str(folder)!r} cannot run while another thread of this process runs an "
            "app: both would import each other's modules; run them one after the other, or in "
            "processes"
        )
    try:
        aside = _set_aside(folder)
        before = {_top(name) for name in sys.modules}
        sys.path.insert(0, str(folder))
        _inside.append(str(folder))
        importlib.invalidate_caches()  # files may be as new as what Python knows of the folder
        try:
            yield
        finally:
            _inside.pop()
            if str(folder) in sys.path:
                sys.path.remove(str(folder))
            own = {
                top for top in {_top(name) for name in sys.modules} - before if _is_in(folder, top)
            }
            for name in [name for name in sys.modules if _top(name) in own]:
                del sys.modules[name]
            sys.modules.update(aside)
    finally:
        _BUSY.release()


@dataclass(frozen=True)
class OwnApp:
    """An app's ClientApp by its name, which each process loads for itself when it is first asked.

    Attributes:
        folder: Of the app.
        reference: ``"module:attribute"``.
    """

    folder: str
    reference: str

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        if not _inside:  # a worker, which has no other app
            sys.path.insert(0, self.folder)
            _inside.append(self.folder)
        reply: Message = resolve_name(self.reference)(message, context)
        return reply


def load_own(folder: Path, key: str, reference: str, kind: type) -> Any:
    """Return an app's half; to be called inside `imported_from`.

    Args:
        folder: Of the app.
        key: Where the reference stands, for errors.
        reference: ``"module:attribute"``; attributes of attributes have dots.
        kind: Its class.

    Raises:
        ConfigError: If there is no such module or attribute, the module fails, or the attribute is
            something else.
    """
    name, _, attributes = reference.partition(":")
    where = f"{key} = {reference!r} in {folder / 'pyproject.toml'}"
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == name or name.startswith(f"{missing}."):
            file = f"{name.replace('.', '/')}.py"
            raise ConfigError(
                f"{where}: no module {missing!r} in {folder}; expected {file}"
            ) from None
        raise ConfigError(
            f"{where} needs the module {missing!r}, which is not installed; the app's own "
            f"dependencies come with: pip install -e {str(folder)!r}"
        ) from error
    except Exception as error:  # the module is somebody's own and may raise anything
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where} cannot be imported: {line}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(
                f"{where}: {name} has no {attribute!r}{nearest(attribute, dir(found))}"
            )
        found = getattr(found, attribute)
    if not isinstance(found, kind):
        raise ConfigError(f"{where} is no {kind.__name__} but an object of {type(found).__name__}")
    return found


def _set_aside(folder: Path) -> dict[str, ModuleType]:
    """Take modules that come from elsewhere away whose names the folder has as well."""
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    names -= set(sys.stdlib_module_names)  # no app could replace these
    other = {name for name in names if name in sys.modules and not _is_in(folder, name)}
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in other}


def _is_in(folder: Path, top: str) -> bool:
    """Return whether a module or package lies right in a folder, not in a `.venv` below it."""
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if file is not None:
        path = Path(file)
        return folder in (path.parent, path.parent.parent if path.stem == "__init__" else None)
    return any(Path(path).parent == folder for path in getattr(module, "__path__", ()))


def _top(name: str) -> str:
    return name.partition(".")[0]
