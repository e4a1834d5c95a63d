"""Who may import whom. A new module or folder of fl_darex needs a row in this table."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HALVES = {"strategies", "clients"}

# A room is a module or a folder of fl_darex. Every room may import errors, shown, itself and the
# package's version; what else it may import stands here. Imports inside functions count, and so do
# modules that are named as text, to be imported later.
ROOMS = {
    "errors": set(),
    "seeds": set(),
    "registry": set(),
    "options": set(),
    "saveable": set(),
    "shown": set(),
    "checks": set(),
    "change": set(),
    "kernels": set(),
    "compiled": {"kernels"},
    "masks": {"compiled"},
    "entries": set(),
    "delta": {"change", "entries"},
    "ties": {"delta"},
    "positions": {"masks", "delta"},
    "survivors": {"delta", "positions"},
    "activations": set(),
    "pruning": {"masks", "delta", "positions", "survivors"},
    "rescaling": {
        *("activations", "checks", "masks", "delta", "positions", "survivors", "pruning"),
    },
    "adapters": {"registry"},
    "lora": {"adapters", "delta"},
    "optim": {"compiled"},
    "wire": {"masks", "delta", "positions", "registry", "survivors"},
    "compression": {
        *("change", "checks", "compiled", "masks", "delta", "options", "positions", "survivors"),
        *("pruning", "registry", "rescaling", "ties", "wire"),
    },
    "secagg": {"change", "checks", "compression", "masks", "delta", "survivors", "wire"},
    "files": {"wire"},
    "deltas": {
        *("change", "delta", "files", "masks", "positions", "pruning", "rescaling", "survivors"),
        *("wire",),
    },
    "flower": {"checks", "compression", "options", "registry", "secagg", "seeds", "wire"},
    "config": {
        *("adapters", "compression", "flower", "masks", "options", "registry", "rescaling"),
        "wire",
    },
    "tasks": {"config", "files", "registry", "rescaling", "seeds"},
    "training": {
        *(
            "activations",
            "adapters",
            "config",
            "delta",
            "lora",
            "optim",
            "rescaling",
            "seeds",
            "survivors",
        ),
        *("tasks", "wire"),
    },
    "analysis": {
        *("activations", "delta", "masks", "positions", "pruning", "rescaling", "seeds"),
        *("survivors", "training"),
    },
    "simulation": {"checks", "flower", "registry"},
    "observers": {"config", "files", "flower"},
    # Names the two apps for Flower, as text.
    "apps": {"strategies", "clients"},
    "study": {"apps", "config", "files", "observers", "registry", "simulation", "training"},
    # The lazy exports of `import fl_darex`.
    "__init__": {"optim", "simulation"},
}
ABOVE_ALL = {"__main__", "cli", "commands"}


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def package_of(file: Path) -> list[str]:
    """The dotted package that a file's relative imports start from."""
    folders = file.relative_to(ROOT).parent.parts
    return [*(["fl_darex"] if folders[0] in HALVES else []), *folders]


def imported(file: Path) -> Iterator[str]:
    """The dotted name of everything of ours that a file imports, as ``fl_darex.room...``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_of(file)[: 1 - node.level or None] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def named_in_text(file: Path) -> Iterator[str]:
    """Modules named as ``"fl_darex.module"`` or ``"fl_darex.module:attribute"``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = node.value.partition(":")[0]
            if module.startswith("fl_darex.") and all(map(str.isidentifier, module.split("."))):
                yield module


def rooms(names: Iterator[str]) -> set[str]:
    """The rooms that dotted names lie in; ``__init__`` for names of fl_darex itself."""
    known = set(ROOMS) | HALVES | ABOVE_ALL
    found = set()
    for name in names:
        head, *tail = name.split(".")
        if head == "fl_darex" and tail != ["__version__"]:
            found.add(tail[0] if tail and tail[0] in known else "__init__")
    return found


def files_of_room(room: str) -> list[Path]:
    path = ROOT / "fl_darex" / room
    return python_files(f"fl_darex/{room}") if path.is_dir() else [path.with_suffix(".py")]


def test_the_table_names_every_module_and_folder_of_the_library():
    on_disk = {
        path.stem
        for path in (ROOT / "fl_darex").iterdir()
        if path.suffix == ".py" or list(path.glob("*.py"))
    }
    assert on_disk == set(ROOMS) | ABOVE_ALL


def test_the_table_has_no_circles():
    remaining = {room: set(allowed) for room, allowed in ROOMS.items()}
    while free := [room for room, allowed in remaining.items() if not allowed & set(remaining)]:
        for room in free:
            del remaining[room]
    assert not remaining


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_lies_below_it(room):
    for file in files_of_room(room):
        found = rooms(imported(file)) | rooms(named_in_text(file))
        odd = found - ROOMS[room] - {room, "errors", "shown"}
        assert not odd, f"{file.relative_to(ROOT)} imports {sorted(odd)}"


def test_the_command_names_the_two_halves_only_as_text():
    files = [file for room in (*ABOVE_ALL, "apps") for file in files_of_room(room)]
    assert not rooms(name for file in files for name in imported(file)) & HALVES
    assert rooms(name for file in files for name in named_in_text(file)) >= HALVES


@pytest.mark.parametrize("half", sorted(HALVES))
def test_a_half_imports_the_library_and_itself_but_neither_the_other_half_nor_the_command(half):
    assert python_files(half)
    for file in python_files(half):
        found = rooms(imported(file)) | rooms(named_in_text(file))
        odd = found & (HALVES - {half} | ABOVE_ALL)
        assert not odd, f"{file.relative_to(ROOT)} imports {sorted(odd)}"


# Rooms that are bytes and numbers alone: they would serve another framework as well.
WITHOUT_FLOWER = (
    *("errors", "seeds", "registry", "options", "saveable", "change", "entries", "masks", "delta"),
    "ties",
    *("positions", "survivors", "pruning", "rescaling", "optim", "lora", "wire", "compression"),
    "adapters",
    *("secagg", "files", "deltas", "activations", "checks", "shown"),
)


@pytest.mark.parametrize("room", WITHOUT_FLOWER)
def test_a_room_of_bytes_and_numbers_imports_no_flwr(room):
    for file in files_of_room(room):
        odd = {name for name in imported(file) if name.split(".")[0] == "flwr"}
        assert not odd, f"{file.relative_to(ROOT)} imports {sorted(odd)}"


# The order inside strategies/: each may import those before it, and none after it.
ORDER = (
    *("forms", "sent", "reply", "agreement", "intake", "nonnegative", "remembered", "server_q"),
    *("expected", "checkpoints", "history", "wrapped", "resumed", "check", "front", "weights"),
    *("corrections", "shared_support", "idle"),
    *("tied", "aggregation", "masks", "downlink", "asking", "secure", "rounds"),
    *("averaging", "darex_strategy", "server", "server_app"),
)


def test_inside_strategies_nothing_imports_what_comes_after_it():
    places = {name: place for place, name in enumerate(ORDER)}
    on_disk = {p.stem if p.suffix else p.name for p in (ROOT / "strategies").iterdir()}
    assert on_disk - {"__init__", "__pycache__"} == set(ORDER)
    for file in python_files("strategies"):
        own = file.relative_to(ROOT / "strategies").parts[0].removesuffix(".py")
        ours = [name.split(".") for name in imported(file) if own in places]
        inside = {name[2] for name in ours if name[:2] == ["fl_darex", "strategies"]}
        late = {name for name in inside if places.get(name, 0) > places[own]}
        assert not late, f"strategies/{own} imports {sorted(late)}, which come after it"


def test_nobody_imports_the_halves_by_their_bare_folder_names():
    folders = ["fl_darex", *sorted(HALVES), "tests", "benchmarks", "examples"]
    for file in (file for folder in folders for file in python_files(folder)):
        odd = {name.split(".")[0] for name in imported(file)} & HALVES
        assert not odd, f"{file.relative_to(ROOT)} imports {sorted(odd)} without fl_darex"


PRIVATE_IN_FLOWER = (
    *("flwr.common.config", "flwr.common.constant", "flwr.common.serde", "flwr.proto"),
    "flwr.super",
)


def test_what_is_private_in_flower_is_touched_in_one_file_alone():
    for file in (file for folder in ("fl_darex", *HALVES) for file in python_files(folder)):
        if file == ROOT / "fl_darex" / "flower" / "private.py":
            continue
        odd = [name for name in imported(file) if name.startswith(PRIVATE_IN_FLOWER)]
        assert not odd, f"{file.relative_to(ROOT)} imports {odd}: see fl_darex/flower/private.py"
        inside = re.findall(
            r"__dict__.*[\"']_\w+|object\.__new__|Message\.__new__", file.read_text("utf-8")
        )
        assert not inside, f"{file.relative_to(ROOT)} has {inside}: see fl_darex/flower/private.py"


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("fl_darex/x.py", "from fl_darex import masks, AdamR", {"masks", "__init__"}),
        ("fl_darex/x.py", "from . import masks", {"masks"}),
        ("fl_darex/wire/x.py", "from ..tasks import Task", {"tasks"}),
        ("fl_darex/wire/x.py", "from .ledger import Entry", {"wire"}),
        ("strategies/x.py", "from ..clients import DarexMod", {"clients"}),
        ("strategies/x.py", "from .aggregation import Reply", {"strategies"}),
        ("fl_darex/x.py", "def f():\n    import fl_darex.cli as c", {"cli"}),
        ("fl_darex/x.py", "from fl_darex import __version__\nimport numpy", set()),
    ],
)
def test_imports_of_every_form_are_seen(monkeypatch, tmp_path, file, source, expected):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert rooms(imported(tmp_path / file)) == expected
