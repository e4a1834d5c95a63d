"""``fl-darex study``: many runs that are compared, resumed where they were stopped."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fl_darex.commands.ends import (
    INTERRUPTED,
    ignore_signals,
    reported,
    say,
    stopped_by_signals,
    unheard,
)
from fl_darex.commands.messages import FAILED, plain_console
from fl_darex.commands.settings import Engine, Overrides, quiet
from fl_darex.config import read_overrides
from fl_darex.errors import ConfigError
from fl_darex.files.lock import Lock
from fl_darex.observers import files
from fl_darex.study import plan
from fl_darex.study.columns import columns
from fl_darex.study.headline import headline
from fl_darex.study.plan import Planned
from fl_darex.study.read_folders import load_result
from fl_darex.study.record import is_done, refuse_others, write_record
from fl_darex.study.runner import Place, here, one_ray
from fl_darex.study.sentence import incomplete, seeds_of, sentence
from fl_darex.study.study_file import Study, read_study
from fl_darex.study.tuning import Choice, choose

ABOUT = """\
STUDY is a TOML file with the arms that are compared, their seeds, and what is tried to choose their
settings; docs/study.md says how to write one. After it come settings of all runs, each as
SECTION.KEY=VALUE, such as the folder of a model.

A study that was stopped goes on where it was when the same command is given again: runs that have
finished are left as they are, others go on from their last checkpoint."""


@dataclass
class _Going:
    """A study that is being run.

    Attributes:
        signal: Name of the signal that stops it.
    """

    study: Study
    out: Path
    console: Console
    command: str
    keep_models: bool
    any_code: bool
    trials: Sequence[Planned] = ()
    runs: Sequence[Planned] = ()
    choices: Sequence[Choice] = ()
    remarks: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    signal: str = ""

    def write(self) -> None:
        """Write what is known now."""
        planned = [*self.trials, *self.runs]
        write_record(
            *(self.out, self.study, self.command, planned),
            *(self.choices, self.remarks, self.reasons),
        )

    def do(self, planned: Sequence[Planned], place: Place) -> None:
        """Do what is left of some runs, and say what comes of each."""
        refuse_others(self.out, planned, self.any_code)
        self.write()
        left = [one for one in planned if not is_done(self.out, one)]
        done = len(planned) - len(left)
        if done:
            say(self.console, f"{done} of {len(planned)} are done already")
        for one, trouble in place(self.out, left, self.keep_models):
            done += 1
            if trouble and files.read_summary(self.out / one.folder).get("reason") is None:
                self.reasons[one.folder] = trouble
            self.write()
            say(self.console, f"[{done}/{len(planned)}] {_line(self.out, one, trouble)}")


def study(
    path: Annotated[Path, typer.Argument(metavar="STUDY", hidden=True)],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="its folder; default studies/NAME", show_default=False)
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="ray: runs side by side; local: one after the other, here")
    ] = Engine.ray,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="leave each run's final model in its folder")
    ] = False,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="take results of other versions of fl-darex, too")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="say which runs there are, and run nothing")
    ] = False,
) -> None:
    """Run what a study lacks: settings are chosen, then every arm is run with every seed."""
    console = plain_console()
    with _errors():
        if engine is Engine.flower:
            raise ConfigError("--engine flower is for single runs; a study takes ray or local")
        found = _with(read_study(path), overrides or [])
        if plan_only:
            for remark in plan.check(found):
                say(console, remark, "note")
            _say_plan(found, console)
            return
    folder = out or Path("studies") / path.stem
    run_study(found, folder, engine, console, keep_models=keep_models, any_code=any_code)


def run_study(
    found: Study,
    folder: Path,
    engine: Engine,
    console: Console,
    *,
    keep_models: bool,
    any_code: bool = False,
) -> None:
    """Do all that is left of a study, as a command.

    Args:
        found: The study.
        folder: Its folder.
        engine: Where runs are done; Flower's is for single ones.
        console: Where lines go.
        keep_models: Whether final models stay.
        any_code: Whether results of other versions of fl-darex are taken.

    Raises:
        typer.Exit: With its code, unless all is done.
    """
    with _errors():
        remarks = plan.check(found)
        for remark in remarks:
            say(console, remark, "note")
        command = shlex.join(["fl-darex", *sys.argv[1:]])
        going = _Going(found, folder, console, command, keep_models, any_code, remarks=remarks)
        with _held(folder), _stopped(going), _place(found, engine) as place:
            _do(going, place)
    if going.reasons or not all(is_done(folder, one) for one in (*going.trials, *going.runs)):
        raise typer.Exit(FAILED)


def _do(going: _Going, place: Place) -> None:
    """Choose the settings of arms, then run them."""
    study = going.study
    going.trials = plan.trials(study)
    if going.trials:
        say(going.console, f"choosing settings: {len(going.trials)} trials")
        going.do(going.trials, place)
        going.choices = choose(going.out, study, going.trials)
        by_name = {arm.name: arm for arm in study.arms}
        for one in going.choices:
            going.remarks += plan.edges(by_name[one.arm], one.settings)
            words = ", ".join(f"{key} = {value}" for key, value in one.settings.items())
            say(going.console, f"{one.arm}: {words}")
    chosen = {(one.arm, one.point): one.settings for one in going.choices}
    going.runs = plan.runs(study, chosen)
    going.do(going.runs, place)
    without = sorted({arm.name for arm in study.arms} - {one.arm for one in going.runs})
    for name in without:
        going.reasons[name] = "no trial finished"
        say(going.console, f"{name}: no trial of its settings has a metric, so it has no runs")
    _say_results(going)


def _errors() -> AbstractContextManager[None]:
    return reported(lambda error: "\n" + "".join(traceback.format_exception(error)))


def _with(study: Study, overrides: Sequence[str]) -> Study:
    """Return a study with settings of a command line."""
    settings = {**study.settings, **read_overrides(overrides)}
    return replace(study, settings=settings)


@contextmanager
def _place(study: Study, engine: Engine) -> Iterator[Place]:
    """Yield what does the runs."""
    quiet()
    if engine is Engine.local:
        yield here
        return
    with one_ray(str(study.settings.get("resources.ray-address", ""))) as place:
        yield place


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from running the same study meanwhile.

    Raises:
        ConfigError: If one does, or the folder cannot be written.
    """
    lock = Lock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = lock.take()
    except OSError as error:
        raise ConfigError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    if not free:
        raise ConfigError(f"the study in {str(folder)!r} goes on in another process")
    try:
        yield
    finally:
        lock.give_back()


@contextmanager
def _stopped(going: _Going) -> Iterator[None]:
    """Let signals stop a study so that the same command goes on with it."""
    with stopped_by_signals(going):
        try:
            yield
        except KeyboardInterrupt:
            ignore_signals()
            going.write()
            say(going.console, f"stopped; what is done is in {going.out}; the same command goes on")
            raise typer.Exit(INTERRUPTED) from None


_SHOWN = ("arm", "runs", "final", "gap", "total_bytes", "ratio", "bytes_to_target")


def _say_results(going: _Going) -> None:
    """Print the columns of the headline that fit a terminal, and where all of it is."""
    going.write()
    result = load_result(going.out)
    found = headline(result)
    shown = [column for column in columns(found) if column.key in _SHOWN]
    table = Table(title=result.title)
    for column in shown:
        table.add_column(column.name, justify="left" if column.key == "arm" else "right")
    for row in found.rows:
        table.add_row(*(column.text(row) for column in shown))
    with unheard():
        going.console.print(table)
    for line in filter(None, (sentence(found), seeds_of(found), incomplete(result))):
        say(going.console, line)
    page = shlex.join(["fl-darex", "report", str(going.out)])
    say(going.console, f"study: {going.out}; {page} writes its page")


def _line(out: Path, one: Planned, trouble: str) -> str:
    """Return what came of a run, in a line."""
    point = f", {one.folder.split('/')[2]}" if one.folder.count("/") > 2 else ""
    what = one.folder.rpartition("/")[2] if one.tried else f"seed {one.seed}"
    name = f"{one.arm}{point}, {what}"
    if trouble:
        return f"{name}: failed: {trouble}"
    summary = files.read_summary(out / one.folder)
    metric, size = summary["final_metric"], summary["total_bytes"] / 1e6
    shown = "nothing was measured" if metric is None else f"{summary['metric_name']} {metric:.4f}"
    return f"{name}: {shown}, {size:.3f} MB, {summary['seconds']:.0f} s"


def _say_plan(study: Study, console: Console) -> None:
    trials = plan.trials(study)
    runs = len(study.arms) * len(study.grid) * len(study.seeds)
    say(console, f"{study.title}: {len(trials)} trials, then {runs} runs")
    for arm in study.arms:
        settings = ", ".join(f"{key} = {value}" for key, value in arm.settings.items())
        tried = ", ".join(f"{key} from {[*values]}" for key, values in arm.knobs.items())
        say(console, "; ".join(filter(None, (f"{arm.name}: {settings}", tried))))
