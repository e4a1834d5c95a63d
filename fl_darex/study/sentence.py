"""What came out, in one sentence of plain words, and what is missing of it."""

from __future__ import annotations

from collections import Counter

from fl_darex.shown import counted
from fl_darex.study import numbers
from fl_darex.study.headline import Headline, Row
from fl_darex.study.result import Result


def sentence(table: Headline) -> str:
    """Return the result in one sentence: what the target cost, or what the bytes bought."""
    result = table.result
    there = [row for row in table.rows if row.runs and not row.state]
    if not there:
        return _not_yet(table)
    if all(row.final is None for row in there):
        least = min(there, key=lambda row: row.total or 0.0)
        return f"No metric was measured; {_sent(least)}."
    if len(result.arms) == 1:
        final = numbers.estimated(there[0].final)
        return f"The final {result.metric_name} is {final}; {_sent(there[0])}."
    if result.reference is not None and result.target is not None:
        return _by_target(table)
    return _by_metric(table)


def incomplete(result: Result) -> str:
    """Return what is missing of a result in words; empty if every run finished."""
    lacking = result.unfinished
    if not lacking:
        return ""
    found = Counter(run.status for run in lacking)
    kinds = ", ".join(f"{number} {status}" for status, number in found.items())
    done = len(result.runs) - len(lacking)
    if len(result.runs) == 1:
        return f"This run has not finished: {lacking[0].progress}."
    return f"Incomplete: {done} of {counted(len(result.runs), 'run')} finished; {kinds}."


def _not_yet(table: Headline) -> str:
    rows = [row for row in table.rows if row.runs]
    if not rows:
        return "No run has come to a result yet."
    if len(table.result.arms) > 1:
        return "No run has finished yet; numbers are those so far."
    name, final = table.result.metric_name, rows[0].final
    so_far = f"the {name} so far is {numbers.estimated(final)}" if final else "nothing is measured"
    return f"No run has finished yet: {so_far}; {_sent(rows[0])}."


def _sent(row: Row) -> str:
    bytes_sent = numbers.in_bytes(row.total or 0.0)
    if row.ratio is None:
        return f"{bytes_sent} were sent"
    return (
        f"{bytes_sent} were sent, where whole models would have taken "
        f"{numbers.significant(row.ratio)} times as much"
    )


def _by_target(table: Headline) -> str:
    result = table.result
    goal = (
        f"{100 * (result.target or 0):g} % of the final {result.metric_name} of {result.reference}"
    )
    reference = next(row for row in table.rows if row.arm == result.reference)
    always = [row for row in table.rows if row.to_target and row.to_target.all and not row.state]
    best = next((row for row in always if row is not reference), None)
    if reference.state or not reference.runs or reference.to_target is None:
        return f"{result.reference}, the reference, has no result to compare with."
    if best is None:
        return f"No other arm reaches {goal} with every seed."
    took = best.to_target.mean if best.to_target and best.to_target.mean else 0.0
    of = best.to_target.runs if best.to_target else 0
    part = f" ({of} of {best.planned} runs)" if of < best.planned else ""
    cost = f"{best.arm}{part} reaches {goal} with {numbers.in_bytes(took)}"
    own = reference.to_target.mean
    if own is None or not took or of != reference.to_target.reached:  # other seeds than its
        return f"{cost}."
    if own <= took:
        return f"No other arm takes fewer bytes to {goal} than {result.reference} itself does."
    share = f"1/{numbers.significant(own / took)}"
    return f"{cost}, {share} of what {result.reference} itself needs for that."


def _by_metric(table: Headline) -> str:
    front = table.front
    if not front:
        return "No final metric is a number: training has diverged."
    name, best, least = table.result.metric_name, front[-1], front[0]
    found = (
        f"The best final {name}, {numbers.estimated(best.final)}, is that of {best.arm}, with "
        f"{numbers.in_bytes(best.total or 0.0)}"
    )
    if least is best:
        return f"{found}, the fewest bytes of all."
    return (
        f"{found}; {least.arm} sends the fewest bytes, {numbers.in_bytes(least.total or 0.0)}, for "
        f"{numbers.estimated(least.final)}."
    )


def seeds_of(table: Headline) -> str:
    """Return which runs the numbers are means over, and what their intervals are."""
    result = table.result
    seeds = ", ".join(map(str, result.seeds))
    alone = len(result.seeds) == 1
    words = [f"Numbers are of seed {seeds}." if alone else f"Numbers are means of seeds {seeds}."]
    if len(table.points) > 1:
        words.append(
            f"They are means over {len(table.points)} grid points of these means; intervals are "
            "95 %, by a bootstrap over points and seeds (10,000 resamples)."
        )
    elif any(row.final and row.final.half is not None for row in table.rows):
        words.append("± is the 95 % interval of Student's t over the seeds.")
    else:
        words.append("One seed has no interval.")
    if result.reference is not None:
        words.append(f"Differences to {result.reference} are paired by seed.")
    if any(row.state for row in table.rows):
        words.append("An arm with a word in brackets is not whole, and is compared with no other.")
    return " ".join(words)
