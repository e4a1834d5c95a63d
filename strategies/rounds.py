"""What happens in a round: clients are picked and told, their updates added, the step is sent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_darex.compression.uplink import Uplink
from fl_darex.errors import PacketError
from fl_darex.flower.grids import FallbackGrid, OrderedGrid, seeded_random
from fl_darex.flower.ledger import Entry, Ledger, LedgerGrid
from fl_darex.flower.records import view_arrays
from fl_darex.flower.roster import Roster
from fl_darex.rescaling.rules import SERVER_RULES
from fl_darex.secagg import SecureAggregation
from fl_darex.seeds import derive

from .aggregation import RoundResult, average, stepped
from .asking import Asking
from .checkpoints import Checkpoints
from .corrections import Corrections
from .downlink.addressing import Addressing, Setting
from .downlink.broadcast import Broadcast
from .front import Front
from .intake import Intake
from .masks import Masks
from .reply import Came
from .secure.sum import SecureSum
from .sent import Asked
from .server_q import Validate
from .weights import note_one_is_all
from .wrapped import Wrapped, explodes


class PackedRounds(Front):
    """A Flower strategy that asks for packets and lets another one take the step.

    Args:
        wrapped: The strategy that picks clients and takes the step.
        uplink: What is asked of clients.
        broadcast: How the model goes to them.
        clip: Largest norm of a client's update; None: any.
        max_weight: Largest weight that is believed.
        secure: Settings of sums of which no part is seen; None: updates come in the clear.
        validate: Returns the loss by which the server chooses q; None: it does not.
        on_reply: Called with the ledger's entry as each reply arrives.
        checkpoints: Where the run is kept, and goes on from; None: nowhere.

    Attributes:
        ledger: The bytes of every message of the run.
        counted: Replies that entered the average of the last round.
        remembers: Whether clients keep something for the next round.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        uplink: Uplink,
        broadcast: Broadcast,
        clip: float | None,
        max_weight: float,
        secure: SecureAggregation | None,
        validate: Validate | None,
        on_reply: Callable[[Entry], None] | None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if (validate is None) == (uplink.q in SERVER_RULES):
            rules = " or ".join(map(repr, SERVER_RULES))
            raise ValueError(f"q = {rules} and validate need each other")
        self._secure = SecureSum(secure, uplink, wrapped, clip) if secure else None
        if secure:  # integers, made of fp32
            uplink = replace(uplink, values="fp32")
        self.strategy, self._uplink = wrapped.strategy, uplink
        self._broadcast, self._addressing = broadcast, Addressing(broadcast)
        self._on_reply, self._checkpoints = on_reply, checkpoints
        self._corrections = Corrections(uplink, validate, self._send_whole)
        self._masks = Masks(uplink)
        self.ledger = ledger = Ledger()
        known, equal = ledger.partition_of, wrapped.private
        self._intake = Intake(known, lambda: wrapped.weighted_by, max_weight, clip, equal)
        self._roster = Roster(ledger.partition_of, broadcast.heard)
        self.counted, self.remembers = 0, uplink.how.remembers
        self._counted: dict[int, int] = {}  # by partition: the last round in which it counted
        self._running, self._timeout, self._settings = False, 3600.0, ConfigRecord()
        self._asked: dict[int, Asked] = {}
        self._asking = Asking(uplink, broadcast, self._addressing, self._slot_of, wrapped.name)
        self._wrapped = wrapped  # last: what it has and this has not is set on it from here on

    def summary(self) -> None:
        """Log the settings of this strategy and of the wrapped one."""
        asked = self._uplink
        p = 1 - asked.keep / 2**32
        log(INFO, "\t├──> DAREx: %s, p = %g, q = %s", asked.method, p, asked.q)
        log(INFO, "\t│\t└── values %s, mask %s", asked.values, asked.mask)
        with self._wrapped.itself() as strategy:
            strategy.summary()

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *more: Any, **named: Any) -> Result:
        """See `Front.start`; rounds are numbered anew."""
        self._counted = {}
        return super().start(grid, initial_arrays, *more, **named)

    @contextmanager
    def running(
        self, grid: Grid, timeout: float = 3600, train_config: ConfigRecord | None = None
    ) -> Iterator[Grid]:
        """Yield the grid over which rounds go, for whoever drives them one by one.

        Every message over it is counted, and what clients on this machine kept of the run is
        removed at the end; where a checkpoint may go on, only after an end without an error.

        Args:
            grid: Any Flower Grid.
            timeout: Seconds to wait for answers to short questions.
            train_config: What the handshake carries beside its question.
        """
        self._timeout, self._settings, self._running = timeout, train_config or ConfigRecord(), True
        counted = LedgerGrid(grid, self.ledger, self._on_reply, self._addressing.plain)
        again, ended = self._addressing.again, self._checkpoints is None
        try:
            yield FallbackGrid(counted, lambda m: again(m, self._slot_of(m), self._settings_of(m)))
            ended = True
        finally:
            self._running = False
            if ended:
                self._broadcast.end()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients, and add each one's terms."""
        if not self._running:
            raise RuntimeError(
                "DarexStrategy is called by another strategy, but has to be the outermost: write "
                "DarexStrategy(Other(FedAvg(...))), not Other(DarexStrategy(FedAvg(...)))"
            )
        self._wrapped.start_from(arrays)
        self._addressing.present(arrays)
        view = self._view(grid)
        seed = derive(self._uplink.seed, "sample", server_round)
        with seeded_random(seed), self._wrapped.itself() as strategy:
            messages = list(strategy.configure_train(server_round, arrays, config, view))
        self.ledger.name_clients()
        messages.sort(key=self._slot_of)
        self._asking.follow(messages)
        self._asking.draw(self._masks.begin([self._slot_of(message) for message in messages]))
        self._asked = self._asking.of(messages, server_round, self._counted)
        if self._secure:
            messages = self._secure.begin(messages, self._asked, grid, self._timeout)
        for message in messages:
            self._addressing.address(message, self._settings_of(message))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the updates and let the wrapped strategy take its step."""
        result = self._result(server_round, list(replies))
        self.counted = len(result.used)
        self._masks.end(server_round)
        for reply in result.used:
            if self._addressing.informed(node := reply.message.metadata.src_node_id):
                (self._broadcast.spoke if reply.packed else self._broadcast.holds)(node)
        self._intake.note_plain(result.used)
        note_one_is_all(server_round, result.used)
        if (after := result.arrays) is not None and (
            name := explodes(after, view_arrays(self._addressing.model))
        ):
            text = "round %s: the step makes %r NaN or infinite; the model stays as it is"
            log(WARNING, text, server_round, name)
            after = None
        if after is None:
            return None, result.metrics
        self._counted |= {reply.terms.slot: server_round for reply in result.used}
        masks = [mask for reply in result.used if (mask := reply.update.mask) is not None]
        # A client without the mod changes everything, and so may a step without clients.
        whole = not masks or len(masks) < len(result.used)
        advanced = self._broadcast.advance(after, None if whole else masks, server_round)
        return advanced, result.metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy pick clients for evaluation."""
        if self._addressing.holds(arrays):
            self._addressing.present(arrays)
        else:
            self._addressing.leave()  # another model than the run's
        view = self._view(grid)
        seed = derive(self._uplink.seed, "evaluate", server_round)
        with seeded_random(seed), self._wrapped.itself() as strategy:
            messages = list(strategy.configure_evaluate(server_round, arrays, config, view))
        for message in messages:
            self._addressing.address(message, [])
        return sorted(messages, key=self._slot_of)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy average the metrics, in partition order."""
        seats = self._roster.partition_of
        ordered = sorted(replies, key=lambda reply: seats.get(reply.metadata.src_node_id, -1))
        for reply in ordered:
            node = reply.metadata.src_node_id
            if reply.has_content() and self._addressing.informed(node):
                self._broadcast.holds(node)
        self._intake.note_arrays(ordered)
        if not self._wrapped.evaluates_itself:
            ordered = self._intake.comparable(ordered)
        with self._wrapped.itself() as strategy:
            found: MetricRecord | None = strategy.aggregate_evaluate(server_round, ordered)
            return found

    @property
    def q(self) -> float:
        """What survivors were divided by in the last round; the mean, where clients choose."""
        return self._corrections.q

    @property
    def rho(self) -> float | None:
        """How much the clients of the last round agree, in [0, 1]; None: unknown; see `Masks`."""
        return self._masks.rho

    @property
    def model(self) -> ArrayRecord:
        """The model that the next round starts from, the one that clients hold."""
        return self._broadcast.model

    def state(self) -> dict[str, Any]:
        """Return all that later rounds depend on; see `fl_darex.saveable.Saveable`.

        Clients' own states are the grid's. Between two rounds, with the round's evaluation over.
        """
        own = {"counted": self.counted, "last": dict(self._counted)}
        return own | {name: holder.state() for name, holder in self._holders().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was asked for; the next round is given `model`."""
        for name, holder in self._holders().items():
            holder.restore(copy.deepcopy(state[name]))
        self.counted, self._counted = state["counted"], dict(state["last"])

    def _holders(self) -> dict[str, Any]:
        return {
            "broadcast": self._broadcast,
            "asking": self._asking,
            "corrections": self._corrections,
            "masks": self._masks,
            "ledger": self.ledger,
            "roster": self._roster,
            "intake": self._intake,
            "strategy": self._wrapped,
            **({"secure": self._secure} if self._secure else {}),
        }

    def _result(self, round_: int, replies: list[Message]) -> RoundResult:
        """Let the wrapped strategy take its step on what counts of the replies."""
        wrapped, came = self._wrapped, Came()
        try:
            if self._secure:
                mean, used = self._secure.end(replies)
                came.usable, came.failed = [mean], [r for r in replies if r.has_error()]
                return average(wrapped, round_, came, self._corrections, used)
            came = self._intake.usable(replies, self._asked)
            if came.usable or self._asked:
                return stepped(wrapped, round_, came, self._masks.before(self._corrections))
        except PacketError as error:
            came.usable = []
            log(WARNING, "round %s: %s; the model stays as it is", round_, error)
        return RoundResult([], *wrapped.step(round_, [], [], came.failed))

    def _view(self, grid: Grid) -> Grid:
        question = self._addressing.question(self._settings)
        return OrderedGrid(grid, self._roster, self._timeout, question)

    def _settings_of(self, message: Message) -> list[Setting]:
        """Return what a message says about the reply, if anything."""
        node = message.metadata.dst_node_id
        evaluates = message.metadata.message_type.partition(".")[0] == "evaluate"
        if evaluates or node not in self._asked or not self._asked[node].told:
            return []  # an answer to an evaluation is as the app leaves it
        stage = self._secure.stage(node) if self._secure else None
        return [self._asked[node].terms, *([stage] if stage else [])]

    def _slot_of(self, message: Message) -> int:
        return self._roster.partition_of[message.metadata.dst_node_id]

    def _send_whole(self, names: list[str]) -> None:
        self._asking.send_whole(names)
        self._broadcast.send_whole(names)
