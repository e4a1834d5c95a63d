"""What a run is going to be: bytes, what is sent whole, what is the strategy's own, what fails.

Said before round 1, from the settings and the model alone; the ledger counts what it came to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower

from fl_darex.compression.expected import ENVELOPE_BYTES, expected_noise
from fl_darex.compression.remarks import remarks
from fl_darex.compression.uplink import Uplink
from fl_darex.delta import Layout
from fl_darex.flower.records import view_arrays
from fl_darex.flower.sizes import describe, trained_info
from fl_darex.masks import ONE, places
from fl_darex.secagg import SecureAggregation

from .expected import EMPTY_BYTES, Downlink, down_bytes, up_bytes
from .forms import is_own
from .wrapped import HOOKS, Wrapped

_MOVING = (flower.FedAvgM, flower.FedAdam, flower.FedYogi)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is expected of a run; its text has a line for each.

    Attributes:
        clients: How many take part in a round.
        plain_bytes: A message with the whole model, as plain Flower sends it once it is trained.
        up_bytes: A client's reply, about; as `plain_bytes` where nothing is packed.
        first_down_bytes: The first message to a client.
        down_bytes: A later one, about; None: an own policy decides.
        noise: How long what dropping, and rounding to a few bits, adds to a round's step is, in
            changes of a client; None: neither is done, or clients choose q.
        masks: What is particular about them: that one lasts for the run, that they come first.
        whole: Names of the tensors whose whole change is sent each time.
        overrides: What the wrapped strategy defines itself, by class.
        needs: What the clients have to be able to do.
        problems: What will not work, or not as one may think.
    """

    clients: int
    plain_bytes: int
    up_bytes: int
    first_down_bytes: int
    down_bytes: int | None
    noise: float | None
    masks: tuple[str, ...]
    whole: tuple[str, ...]
    overrides: tuple[str, ...]
    needs: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def noise_line(self) -> str:
        """Return `noise` in words; empty: there is none to foretell."""
        if self.noise is None:
            return ""
        said = (
            f"{self.noise:.2g} times a client's change" if self.noise else "0, nothing is dropped"
        )
        return f"noise of dropping and rounding, a round: {said}"

    def lines(self) -> list[str]:
        """Return it all but the problems, a line for each."""
        later = "as the policy decides" if self.down_bytes is None else f"about {self.down_bytes:,}"
        found = [
            f"bytes up, a client and round: about {self.up_bytes:,} (plain: {self.plain_bytes:,})",
            f"bytes down, a client: {self.first_down_bytes:,} once, then {later} a round with "
            f"{self.clients} clients",
        ]
        if self.noise_line:
            way_out = "; where accuracy falls take a smaller p, smaller steps or AdamR"
            found.append(self.noise_line + way_out * bool(self.noise))
        found += self.masks
        if self.whole:
            more = f" and {len(self.whole) - 5} more" if len(self.whole) > 5 else ""
            found.append(f"tensors sent whole: {', '.join(self.whole[:5])}{more}")
        found += [f"the wrapped strategy's own: {own}" for own in self.overrides]
        return found + [f"clients need {need}" for need in self.needs]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"problem: {one}" for one in self.problems)])


def check(
    wrapped: Wrapped,
    uplink: Uplink,
    downlink: Downlink,
    secure: SecureAggregation | None,
    model: ArrayRecord,
    clients: int,
) -> Check:
    """Return what is expected of a run.

    Args:
        wrapped: The strategy inside.
        uplink: What is asked of clients.
        downlink: How the model goes to them.
        secure: Settings of sums of which no part is seen; None: updates come in the clear.
        model: That before round 1.
        clients: How many take part in a round.
    """
    arrays, record = view_arrays(model), describe(model)
    problems = list(_problems(wrapped, uplink, downlink, secure, arrays, clients))
    layout = Layout(())
    with suppress(ValueError):  # it is among the problems
        fitted = uplink.fitted(arrays)
        layout = fitted.layout(arrays)
        if layout.pruned or layout.dense:
            problems += remarks(layout, fitted, arrays if secure else None)
    first, plain = (
        ENVELOPE_BYTES + sum(info.objects.values()) + info.tree_bytes
        for info in (record, trained_info(model, record))
    )
    up = plain if not uplink.how.packs else up_bytes(layout, uplink, secure, clients)
    if layout.pruned and uplink.how.packs and up > 0.9 * plain:
        problems.append(
            f"a packet of {up:,} bytes is hardly smaller than the model; use a larger p"
        )
    return Check(
        clients=clients,
        plain_bytes=plain,
        up_bytes=up,
        first_down_bytes=EMPTY_BYTES if downlink.held else first,
        down_bytes=down_bytes(layout, uplink, downlink, clients, plain),
        noise=expected_noise(uplink, clients) if layout.pruned else None,
        masks=tuple(_masks(uplink, layout, clients)),
        whole=tuple(spec.name for spec in (*layout.dense, *layout.raw)),
        overrides=tuple(_overrides(wrapped)),
        needs=tuple(_needs(uplink)),
        problems=tuple(problems),
    )


def _masks(uplink: Uplink, layout: Layout, clients: int) -> Iterator[str]:
    """Yield what is particular about the masks, in words."""
    keep, entries = uplink.keep / ONE, sum(spec.numel for spec in layout.pruned)
    if not (uplink.how.packs and uplink.how.seeded and entries) or keep == 1.0:
        return
    if uplink.mask_first:
        yield (
            f"mask first: clients train about {round(entries * keep):,} of {entries:,} entries a "
            "round, those that the mask keeps, and what is sent whole; q = 1"
        )
    if not uplink.rotate:
        if uplink.mask == "round":
            yield (
                f"one mask for the whole run: about {round(entries * keep):,} of {entries:,} "
                "entries ever move, all others stay as they are"
            )
        else:
            yield (
                f"one mask of each client for the whole run: it moves about "
                f"{round(entries * keep):,} of {entries:,} entries, the same in each round"
            )


def _overrides(wrapped: Wrapped) -> Iterator[str]:
    """Yield what each class of somebody's own defines of a strategy, in words."""
    for one in wrapped.layers:
        if own := [name for name in ("start", *HOOKS) if is_own(one, name)]:
            yield f"{type(one).__name__}.{', '.join(own)}"


def _needs(uplink: Uplink) -> Iterator[str]:
    """Yield what a client has to have beside the mod, in words; its reply is an error without."""
    if uplink.rule:
        yield f"DarexMod(search=...): q = {uplink.q!r} is theirs to choose"
    if uplink.method == "wanda":
        yield "DarexMod(norms=...): method 'wanda' asks for their inputs' norms"


def _problems(
    wrapped: Wrapped,
    uplink: Uplink,
    downlink: Downlink,
    secure: SecureAggregation | None,
    arrays: Mapping[str, Any],
    clients: int,
) -> Iterator[str]:
    """Yield what will not work, or not as one may think, in words."""
    try:
        if not Layout.of(arrays, uplink.dense).pruned:
            yield "no tensor of this model is pruned, so nothing is saved on the way up"
    except ValueError as error:
        yield str(error)
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name!r} of the initial model holds NaN or infinite values"
    if secure is not None:
        try:
            secure.ring_for(clients)
        except ValueError as error:
            yield str(error)
    if uplink.mask == "disjoint" and clients > (many := places(uplink.keep)):
        yield (
            f"mask 'disjoint': {many} masks fit side by side at p = {1 - uplink.keep / ONE:g}, and "
            f"a round has {clients} clients, so that some keep the same entries; raise p, or take "
            "mask='client'"
        )
    moves = "its noise moves" if wrapped.private else "its momentum moves"
    # Momentum stays where clients' changes are; a mask that never moves keeps it there.
    moved = uplink.rotate and any(isinstance(one, _MOVING) for one in wrapped.layers)
    if downlink.policy == "update" and (wrapped.private or moved):
        yield (
            f"downlink 'update' with {wrapped.name}: {moves} every entry sooner or later, and "
            "the way down grows to the whole model; take downlink='server'"
        )
