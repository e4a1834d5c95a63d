"""A Flower app as a folder: its file, its modules, and what is wrong with them."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.serverapp import ServerApp

from fl_darex.errors import ConfigError, EngineError
from fl_darex.simulation import simulate, simulate_in_process
from fl_darex.simulation.own_modules import imported_from
from fl_darex.simulation.project import read

HEAD = """
[project]
name = "app"
version = "1.0.0"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tests"
"""
COMPONENTS = """
[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"
"""
CONFIG = """
[tool.flwr.app.config]
rounds = 3
train.lr = 0.5
[tool.flwr.app.config.train.adam]
on = true
name = "a"
"""
# It says which `task` its two halves have, at their beginning and when they are at work.
SERVER = """
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
import task

app = ServerApp()

@app.main()
def main(grid, context):
    from later import name
    context.state["told"] = grid_told(grid)
    context.state["told"]["server"] = [task.NAME, name]

def grid_told(grid):
    nodes = grid.get_node_ids()
    replies = grid.send_and_receive([Message(RecordDict(), n, "query") for n in nodes], timeout=60)
    return next(reply.content["told"] for reply in replies)
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import task

app = ClientApp()

@app.query()
def tell(message, context):
    from later import name
    told = ConfigRecord({"client": [task.NAME, name]})
    return Message(RecordDict({"told": told}), reply_to=message)
"""


def made(
    folder: Path, name: str = "one", file: str = HEAD + COMPONENTS + CONFIG, **modules: str
) -> Path:
    """Write an app whose modules have the names that most apps' have."""
    texts = {"server_app": SERVER, "client_app": CLIENT, "task": f"NAME = {name!r}"}
    texts |= {"later": "from task import NAME as name"} | modules
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(file, "utf-8")
    for module, text in texts.items():
        (folder / f"{module}.py").write_text(text, "utf-8")
    return folder


def told(app: Path, run: Any = simulate_in_process) -> dict[str, Any]:
    """What the two halves of an app that `made` has written say."""
    return dict(run(app, clients=2).state["told"])


# --- the file -----------------------------------------------------------------------------------


def test_the_configuration_is_flat_and_overrides_are_flat_or_nested(tmp_path: Path) -> None:
    project = read(made(tmp_path / "app"))
    flat = {"rounds": 3, "train.lr": 0.5, "train.adam.on": True, "train.adam.name": "a"}
    assert project.config == flat
    changed = {**flat, "rounds": 1, "train.adam.on": False, "train.lr": 2.0}
    given = {"rounds": 1, "train": {"adam": {"on": False}}, "train.lr": 2.0}
    assert project.run_config(given) == changed
    assert project.config == flat
    assert project.run_config({}) == flat
    assert read(made(tmp_path / "bare", file=HEAD + COMPONENTS)).config == {}


FEDERATIONS = """
[tool.flwr.federations]
default = "many"
[tool.flwr.federations.few]
options.num-supernodes = 2
[tool.flwr.federations.many]
options.num-supernodes = 7
options.backend.client-resources.num-cpus = 2
options.backend.client-resources.num-gpus = 0.25
"""


@pytest.mark.parametrize(
    ("text", "clients", "per_client"),
    [
        ("", None, {}),
        (FEDERATIONS, 7, {"num_cpus": 2, "num_gpus": 0.25}),
        (FEDERATIONS.replace('"many"', '"few"'), 2, {}),
        (FEDERATIONS.replace('default = "many"', ""), None, {}),  # which of the two is not said
        ("[tool.flwr.federations.only]\noptions.num-supernodes = 4", 4, {}),
        ('[tool.flwr.federations.remote]\naddress = "somewhere:9093"', None, {}),
    ],
)
def test_nodes_and_resources_are_those_of_the_federation_that_the_file_means(
    tmp_path: Path, text: str, clients: int | None, per_client: dict[str, float]
) -> None:
    project = read(made(tmp_path / "app", file=HEAD + COMPONENTS + text))
    assert (project.clients, project.per_client) == (clients, per_client)


def test_what_the_file_says_of_nodes_is_a_default(tmp_path: Path) -> None:
    nodes = "from flwr.app import ConfigRecord\n" + SERVER.replace(
        '["server"] = [task.NAME, name]', '["nodes"] = len(list(grid.get_node_ids()))'
    )
    app = made(tmp_path / "app", file=HEAD + COMPONENTS + FEDERATIONS, server_app=nodes)
    assert simulate_in_process(app).state["told"]["nodes"] == 7  # type: ignore
    assert simulate_in_process(str(app), clients=3).state["told"]["nodes"] == 3  # type: ignore


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"pyproject.toml cannot be used: Missing \[project\] section; Missing \[tool.flwr"),
        ("a = ", r"pyproject.toml cannot be used: Invalid value \(at end of"),
        (HEAD, r"cannot be used: Missing \[tool.flwr.app.components\] section; flwr run needs it"),
        (
            HEAD + COMPONENTS.replace('serverapp = "server_app:app"', ""),
            r'Property "serverapp" missing in \[tool.flwr.app.components\]',
        ),
        (
            HEAD + COMPONENTS.replace("server_app:app", "server_app"),
            r"serverapp = 'server_app' in .*pyproject.toml: must be text, 'package.module:attri",
        ),
        (HEAD + COMPONENTS + "[tool.flwr.app.config]\nlayers = [1]", "The value for key layers"),
        (
            HEAD + COMPONENTS + FEDERATIONS.replace('"many"', '"lots"'),
            r"default = 'lots' in .*: there is no such federation; there are: few, many",
        ),
        (
            HEAD + COMPONENTS + FEDERATIONS.replace("= 7", "= 0"),
            r"\[tool.flwr.federations.many\] in .*options.num-supernodes must be 1 or more, got 0",
        ),
        (
            HEAD + COMPONENTS + FEDERATIONS.replace("num-cpus = 2", "num-cpus = 0"),
            r"client-resources.num-cpus must be a finite number above 0, got 0",
        ),
        (
            HEAD + COMPONENTS + FEDERATIONS.replace("num-gpus = 0.25", "num-gpus = 1.5"),
            r"num-gpus must be from 0 on a fraction below 1 or a whole number, got 1.5",
        ),
        (HEAD + COMPONENTS, r"how many clients\? .*give clients=N"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    app = made(tmp_path / "app", file=text)
    with pytest.raises(ConfigError, match=message) as caught:
        simulate_in_process(app)
    assert "\n" not in str(caught.value) and str(app) in str(caught.value)


def test_a_folder_without_an_app_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pyproject.toml in it; give the folder with the app"):
        simulate_in_process(tmp_path, clients=2)
    with pytest.raises(ConfigError, match="'/nowhere/app' is no Flower app: no such folder; give"):
        simulate("/nowhere/app", clients=2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"round": 1},
            r"run_config\['round'\]: .*no such key; did you mean 'rounds'\?; it has: ro",
        ),
        ({"train": {"mu": 1}}, r"run_config\['train.mu'\]: .* has no such key"),
        ({"rounds": [1]}, r"run_config: The value for key rounds needs to be of type"),
    ],
)
def test_a_setting_that_the_app_does_not_have_is_refused(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate_in_process(made(tmp_path / "app"), clients=1, run_config=overrides)


def test_arguments_that_say_too_much_or_too_little_are_refused(tmp_path: Path) -> None:
    app = made(tmp_path / "app")
    for run in (simulate, simulate_in_process):
        with pytest.raises(TypeError, match="client_app must be left out where the first argument"):
            run(app, "client_app:app", clients=2)
        with pytest.raises(TypeError, match="client_app is missing; only an app's folder"):
            run(ServerApp(), clients=2)
        with pytest.raises(TypeError, match="clients is missing"):
            run(ServerApp(), "client_app:app")
        with pytest.raises(TypeError, match="run_config must be a mapping of names to values"):
            run(app, clients=2, run_config="rounds=2")
        with pytest.raises(TypeError, match="server_app must be a ServerApp, got 3"):
            run(3, "client_app:app", clients=2)  # type: ignore[arg-type]


# --- its modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("half", "reference", "modules", "message"),
    [
        ("server_app", "gone:app", {}, "no module 'gone' in .*; expected gone.py"),
        ("client_app", "pack.gone:app", {}, "no module 'pack' in .*; expected pack/gone.py"),
        ("client_app", "client_app:ap", {}, "client_app has no 'ap'; did you mean 'app'?"),
        ("server_app", "task:NAME", {}, "is no ServerApp but an object of str"),
        ("client_app", "server_app:app", {}, "is no ClientApp but an object of ServerApp"),
        (
            *("server_app", "server_app:app", {"server_app": "import no_such_framework"}),
            "needs the module 'no_such_framework', which is not installed; .*pip install -e '",
        ),
        (
            *("client_app", "client_app:app", {"client_app": "1 / 0"}),
            "cannot be imported: ZeroDivisionError: division by zero",
        ),
    ],
)
@pytest.mark.parametrize("run", [simulate, simulate_in_process])
def test_a_half_that_cannot_be_loaded_is_named_before_anything_starts(
    tmp_path: Path, run: Any, half: str, reference: str, modules: dict[str, str], message: str
) -> None:
    text = HEAD + COMPONENTS.replace(f"{half}:app", reference)
    app = made(tmp_path / "app", file=text, **modules)
    where = f"[tool.flwr.app.components] {half.replace('_', '')} = '{reference}' in {app}"
    with pytest.raises(ConfigError, match=f"{re.escape(where)}.*{message}"):
        run(app, clients=2)
    assert str(app) not in sys.path and "task" not in sys.modules


def test_two_apps_with_modules_of_the_same_names_do_not_mix(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one"), made(tmp_path / "two", "two")
    for app, name in ((one, "one"), (two, "two"), (one, "one")):
        assert told(app) == {"client": [name, name], "server": [name, name]}
    assert not {"task", "later", "server_app", "client_app"} & set(sys.modules)
    assert not {str(one), str(two)} & set(sys.path)


def test_the_same_app_begins_anew_and_sees_what_has_changed_in_its_files(tmp_path: Path) -> None:
    app = made(tmp_path / "app")
    assert told(app)["server"] == ["one", "one"]
    (app / "task.py").write_text("NAME = 'another'", "utf-8")
    assert told(app)["server"] == ["another", "another"]


def test_an_app_that_runs_another_one_gets_its_own_modules_back(tmp_path: Path) -> None:
    inner = made(tmp_path / "inner", "inner")
    nested = SERVER.replace(
        "    from later",
        "    from fl_darex.simulation import simulate_in_process\n"
        f"    inner = simulate_in_process({str(inner)!r}, clients=1).state['told']['server']\n"
        "    assert list(inner) == ['inner', 'inner'], inner\n"
        "    from later",
    )
    assert told(made(tmp_path / "outer", "outer", server_app=nested))["server"] == ["outer"] * 2


def test_modules_of_the_caller_that_have_the_apps_names_are_there_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {name: ModuleType(name) for name in ("task", "later", "later.part")}
    for name, module in mine.items():
        module.NAME = module.name = "mine"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    assert told(made(tmp_path / "app"))["server"] == ["one", "one"]
    assert {name: sys.modules[name] for name in mine} == mine


def test_what_the_caller_has_imported_from_the_apps_folder_is_the_apps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made(tmp_path / "app")
    monkeypatch.syspath_prepend(app)
    import task  # type: ignore[import-not-found]

    try:
        task.NAME = "set by the caller"
        assert told(app)["server"] == ["set by the caller"] * 2
        assert sys.modules["task"] is task
    finally:
        del sys.modules["task"]


def test_libraries_in_an_environment_below_the_app_stay_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made(tmp_path / "app", task="import some_library as library\nNAME = library.NAME")
    place = app / ".venv" / "lib"
    place.mkdir(parents=True)
    (place / "some_library.py").write_text("NAME = 'library'", "utf-8")
    monkeypatch.syspath_prepend(place)
    assert told(app)["server"] == ["library"] * 2
    assert sys.modules.pop("some_library").NAME == "library"


def test_packages_without_init_are_the_apps_as_well(tmp_path: Path) -> None:
    file = HEAD + COMPONENTS.replace('"server_app', '"pack.server_app')
    for name in ("one", "two"):
        app = made(tmp_path / name, name, file=file)
        (app / "pack").mkdir()
        (app / "server_app.py").rename(app / "pack" / "server_app.py")
        assert told(app)["server"] == [name, name]
    assert not any(name.partition(".")[0] == "pack" for name in sys.modules)


def test_an_app_in_another_thread_is_refused_while_one_runs(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            told(app)
        except BaseException as error:
            caught.append(error)

    app = made(tmp_path / "app")
    with imported_from(tmp_path):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert [type(error) for error in caught] == [EngineError]
    assert "another thread of this process runs an app" in str(caught[0])
    assert told(app)["server"] == ["one", "one"]
