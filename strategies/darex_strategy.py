"""`DarexStrategy`: the server half, around any Flower strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_darex.compression.terms import Terms
from fl_darex.compression.uplink import Request, check_choice, check_replies
from fl_darex.delta import Layout
from fl_darex.errors import PacketError
from fl_darex.flower.grids import FallbackGrid, OrderedGrid, seeded_random
from fl_darex.flower.ledger import Entry, Ledger, LedgerGrid
from fl_darex.flower.records import view_arrays
from fl_darex.flower.roster import Roster
from fl_darex.pruning.structured import COLUMNS
from fl_darex.rescaling.rules import SERVER_VALIDATION
from fl_darex.secagg import SecureAggregation
from fl_darex.seeds import derive
from fl_darex.wire.values import CODINGS

from .aggregation import Arrays, Reply
from .clipping import tightest
from .downlink.addressing import Courier, Setting
from .downlink.protocol import make_downlink
from .inbox import Inbox
from .replies import LARGEST_WEIGHT
from .secure.sum import SecureSum
from .server_q import choose_q
from .step import Step, average, compare
from .wrapped import Wrapped


class DarexStrategy(Strategy):
    """Asks clients for pruned packets and hands the wrapped strategy their average.

    ``DarexStrategy(FedAvg(...), p=0.99)`` is a Flower strategy: what the wrapped one samples,
    configures and evaluates stays its own. Replies are averaged in partition order, so FedAvg,
    FedProx, FedAvgM, FedAdam, FedYogi and FedAdagrad take their own step on the averaged
    (pseudo-)gradient. FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan and QFedAvg, which compare
    clients, do so where all clients send something: they need ``mask="round"``. A client that sends
    ordinary arrays counts like any other. A bad packet costs that reply, with a line in the log,
    never the round.

    A wrapper for differential privacy goes inside: ``DarexStrategy(DP(FedAvg(...)))``. Updates are
    then clipped to its norm after they were divided by q, and all clients count the same, as its
    noise assumes.

    ``p = 0`` with fp32 values equals dense averaging to float32 round-off: within
    ``(clients + 6) * 2**-23 * (max |tensor| + 1)`` for updates below 1. ``method="dense"`` with
    ``downlink="dense"`` has the very bits of Flower's FedAvg on the replies in partition order.

    Args:
        strategy: One of Flower's strategies for tensors, or your own that is built on one.
        p: Fraction of each delta that is dropped, in [0, 1); 0 drops nothing.
        q: Survivors are divided by it: ``"dare"`` is 1-p (unbiased), or a number in (0, 1], or a
            rule of `fl_darex.rescaling.RULES` by which each client chooses its own, or
            ``"server-validation"``: the server chooses it each round, with ``validate``.
        values: A row of `fl_darex.wire.values.CODINGS`; all but ``"sign"`` are unbiased.
        mask: ``"client"``: independent masks; ``"round"``: all clients of a round share one.
        count: ``"random"``; ``"exact"``: each tensor keeps its share, rounded at random.
        method: ``"dare"``, ``"structured"``, ``"magnitude"``, ``"wanda"`` (for clients with
            ``DarexMod(norms=...)``), or ``"dense"``: the same path with nothing dropped.
        scope: Of magnitude and WANDA: among which entries the largest are chosen, ``"layer"``,
            ``"row"`` or ``"global"``.
        columns: Of structured pruning: fraction of the input columns that is kept.
        downlink: How the model goes to the clients. ``"dense"``: whole, to everybody.
            ``"update"``: what changed since the version that a client holds. ``"server"``: the
            largest entries of that, the rest is kept for later rounds.
        base_held: Whether all clients are ``DarexMod(base=...)`` and hold the initial model, so
            that nobody is sent it. Without this they have to say so themselves, in the answer to
            ``query.handshake``, for which an app needs a handler. A client that turns out to hold
            something else is sent the model after all.
        downlink_p: Fraction of the server's step that ``"server"`` keeps back; None: ``p``.
        downlink_values: How the server's packets write numbers; None: as ``values``.
        seed: Seed of masks and of the sampling of clients, in [0, 2**63).
        dense: Names of tensors whose whole delta is sent, such as a fresh head.
        clip: Largest L2 norm of a client's update, survivors over q and dense tensors together;
            longer ones are scaled down. None: as long as they are, unless the wrapped strategy
            adds noise for a norm.
        max_weight: Largest weight that is believed, such as the most examples that a client can
            have; a client that claims more does not count.
        replies: What the wrapped strategy is given: ``"mean"``: one reply that stands for all;
            ``"each"``: all replies with their own metrics and records, the mean in place of their
            arrays; ``"support"``: all replies with their own values, where all have some.
            ``"auto"``: ``"support"`` for strategies that compare clients, ``"each"`` for those with
            an aggregation of their own, else ``"mean"``.
        validate: Of ``q="server-validation"``: returns the loss of a model on examples that are
            neither trained on nor reported; called with arrays by name, many times a round.
        secure: Adds the updates of a round so that the server learns their sum and none of them;
            needs ``mask="round"``. ``values`` is not used: `SecureAggregation` says how numbers
            travel. With ``clip``, clients clip their own updates.
        on_reply: Called with the ledger's entry as each reply arrives.

    Attributes:
        ledger: The bytes of every message of the run.
        q: The number by which survivors are divided; where it is searched, the mean over the
            last round's clients.
        counted: Replies that entered the average of the last round.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        strategy: Strategy,
        p: float = 0.99,
        *,
        q: float | str = "dare",
        values: str = "fp16",
        mask: str = "client",
        count: str = "random",
        method: str = "dare",
        scope: str = "layer",
        columns: float = COLUMNS,
        downlink: str = "update",
        base_held: bool = False,
        downlink_p: float | None = None,
        downlink_values: str | None = None,
        seed: int = 0,
        dense: Iterable[str] = (),
        clip: float | None = None,
        max_weight: float = LARGEST_WEIGHT,
        replies: str = "auto",
        validate: Callable[[Mapping[str, Any]], float] | None = None,
        secure: SecureAggregation | None = None,
        on_reply: Callable[[Entry], None] | None = None,
    ) -> None:
        if isinstance(dense, str):
            raise ValueError(f"dense must be a list of names, got the text {dense!r}")
        self._request = Request(
            p=p,
            q=q,
            values="fp32" if secure else values,  # masked numbers are integers
            mask=mask,
            count=count,
            method=method,
            scope=scope,
            columns=columns,
            seed=seed,
            dense=tuple(dense),
        )
        check_choice("values", values, CODINGS)
        if (validate is None) == (q == SERVER_VALIDATION):
            raise ValueError(f"q = {SERVER_VALIDATION!r} and validate need each other")
        self.strategy = strategy
        self._wrapped = Wrapped(strategy, replies)
        check_replies(self._request, self._wrapped.form, self._wrapped.name)
        clip = tightest(clip, self._wrapped.clipping_norm)
        self.ledger = Ledger()
        known, equal = self.ledger.partition_of, self._wrapped.private
        self._inbox = Inbox(known, self._wrapped.weighted_by, max_weight, clip, equal)
        self._secure = secure and SecureSum(secure, self._request, self._wrapped, clip)
        self._running = False
        self.counted = 0
        self.q = self._request.first_q
        self._seed, self._dense, self._on_reply = seed, self._request.dense, on_reply
        self._validate = validate
        self._downlink = make_downlink(
            downlink,
            p=p if downlink_p is None else downlink_p,
            values=downlink_values or values,
            seed=seed,
            dense=self._dense,
            held=base_held,
        )
        self._roster = Roster(known, self._downlink.heard)
        self._timeout = 3600.0
        self._settings = ConfigRecord()
        self._courier = Courier(self._downlink)
        self._base: dict[str, Any] = {}
        self._layout = Layout(())
        self._terms: dict[int, Terms] = {}

    def summary(self) -> None:
        """Log the settings of this strategy and of the wrapped one."""
        asked = self._request
        log(INFO, "\t├──> DAREx: %s, p = %g, q = %s", asked.method, asked.p, asked.q)
        log(INFO, "\t│\t└── values %s, mask %s", asked.values, asked.mask)
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds; see `flwr.serverapp.strategy.Strategy.start` for the arguments."""
        self._timeout, self._settings = timeout, train_config or ConfigRecord()
        self._running = True
        counted = LedgerGrid(grid, self.ledger, self._on_reply, self._courier.plain)
        try:
            return super().start(
                FallbackGrid(counted, self._again),
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )
        finally:
            self._running = False
            self._downlink.end()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients, and add each one's terms."""
        if not self._running:
            raise RuntimeError(
                "DarexStrategy is called by another strategy, but has to be the outermost: write "
                "DarexStrategy(Other(FedAvg(...))), not Other(DarexStrategy(FedAvg(...)))"
            )
        self._present(arrays)
        self._base = view_arrays(arrays)
        self._layout = Layout.of(self._base, self._dense)
        self._terms = {}
        with seeded_random(derive(self._seed, "sample", server_round)):
            messages = list(
                self.strategy.configure_train(server_round, arrays, config, self._view(grid))
            )
        self.ledger.name_clients()
        messages.sort(key=self._slot_of)
        for message in messages:
            node = message.metadata.dst_node_id
            slot, version = self._slot_of(message), self._downlink.version.hex()
            record = self._courier.place(message.content)
            self._terms[node] = self._request.terms(server_round, slot, version, record)
        if self._secure:
            messages = self._secure.begin(
                messages, self._terms, self._base, self._layout, grid, self._timeout
            )
        for message in messages:
            self._courier.address(message, self._asked(message))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the packets and let the wrapped strategy take its step."""
        self.counted = 0
        try:
            step = self._step(server_round, replies)
        except PacketError as error:
            log(WARNING, "round %s: %s; the model stays as it is", server_round, error)
            return None, None
        used, arrays, metrics = step
        self.counted = len(used)
        for reply in used:
            known = self._downlink.spoke if reply.packet else self._downlink.holds
            known(reply.message.metadata.src_node_id)
        self._inbox.note_plain(used)
        if arrays is None:
            return None, metrics
        masks = [reply.packet.mask for reply in used if reply.packet]
        whole = len(masks) < len(used)  # a client without the mod: its change is everywhere
        return self._downlink.advance(arrays, None if whole else masks, server_round), metrics

    def _step(self, round_: int, replies: Iterable[Message]) -> Step:
        """Let the wrapped strategy take its step on what counts of the replies."""
        base, layout, wrapped = self._base, self._layout, self._wrapped
        if self._secure:
            mean, used = self._secure.end(replies)
            return average(wrapped, round_, base, layout, [mean], self._note_q, used)
        usable = self._inbox.usable(replies, self._terms, base, layout)
        if wrapped.form != "support":
            return average(wrapped, round_, base, layout, usable, self._note_q)
        step = compare(wrapped, round_, base, layout, usable)
        self._note_q(step.used, {})
        return step

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients for evaluation."""
        self._present(arrays)
        self._terms = {}  # an answer to an evaluation is as the app leaves it
        with seeded_random(derive(self._seed, "evaluate", server_round)):
            messages = list(
                self.strategy.configure_evaluate(server_round, arrays, config, self._view(grid))
            )
        messages.sort(key=self._slot_of)
        for message in messages:
            self._courier.address(message, [])
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy average the metrics, in partition order."""
        ordered = sorted(replies, key=self._partition_of)
        for reply in ordered:
            if reply.has_content():
                self._downlink.holds(reply.metadata.src_node_id)
        return self.strategy.aggregate_evaluate(server_round, ordered)

    def _present(self, arrays: ArrayRecord) -> None:
        """Make a record the model that messages stand for from now on."""
        if arrays is not self._courier.model:
            self._wrapped.start_from(arrays)
        self._courier.present(arrays)

    def _view(self, grid: Grid) -> Grid:
        question = self._courier.question(self._settings)
        return OrderedGrid(grid, self._roster, self._timeout, question)

    def _asked(self, message: Message) -> list[Setting]:
        """Return what a message says about the reply, if anything."""
        node = message.metadata.dst_node_id
        if self._request.method == "dense" or node not in self._terms:
            return []
        stage = self._secure.stage(node) if self._secure else None
        return [self._terms[node], *([stage] if stage else [])]

    def _again(self, message: Message) -> Message:
        return self._courier.again(message, self._slot_of(message), self._asked(message))

    def _slot_of(self, message: Message) -> int:
        return self._roster.partition_of[message.metadata.dst_node_id]

    def _partition_of(self, reply: Message) -> int:
        return self._roster.partition_of.get(reply.metadata.src_node_id, -1)

    def _note_q(self, used: list[Reply], mean: Arrays) -> None:
        """Set ``q`` to what the round's survivors were divided by; choose it if that is ours."""
        if self._validate is not None and any(reply.packet for reply in used):
            self.q = choose_q(self._validate, self._base, mean, self._layout, self._request.first_q)
        elif self._request.rule:
            own = [reply.packet.q for reply in used if reply.packet is not None]
            self.q = float(np.mean([np.mean(q) for q in own])) if own else self.q
