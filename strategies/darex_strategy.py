"""`DarexStrategy`: the server half, around any Flower strategy; here are its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from logging import INFO, WARNING
from os import PathLike
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_darex import checks
from fl_darex.compression.choices import (
    CountChoice,
    DownlinkChoice,
    MaskChoice,
    MethodChoice,
    QChoice,
    ValuesChoice,
)
from fl_darex.compression.downlink import DownlinkPolicy
from fl_darex.compression.method import Method
from fl_darex.compression.uplink import Uplink
from fl_darex.flower.ledger import Entry
from fl_darex.masks import keep_threshold
from fl_darex.options import Scalar
from fl_darex.secagg import SecureAggregation
from fl_darex.wire.codings import Coding, Scale

from .check import Check, check
from .checkpoints import Checkpoints, checkpoints_for
from .downlink import broadcast_for
from .expected import Downlink
from .forms import FormChoice, check_form
from .idle import idle_arguments
from .intake import LARGEST_WEIGHT, tightest
from .rounds import PackedRounds
from .wrapped import Wrapped


class DarexStrategy(PackedRounds):
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
    ``(clients + 6) * 2**-23 * (max |tensor| + 1)`` for updates below 1. With fp64 values a model in
    float64 does so to float64 round-off, 2**-52 in its place. ``method="dense"`` with
    ``downlink="dense"`` has the very bits of Flower's FedAvg on the replies in partition order.

    Args:
        strategy: One of Flower's strategies for tensors, or your own that is built on one.
        p: Fraction of each delta that is dropped, in [0, 1); 0 drops nothing.
        q: Survivors are divided by it: ``"dare"`` is 1-p (unbiased), or a number in (0, 1], or a
            rule of `fl_darex.rescaling.rules.RULES` by which each client chooses its own, or
            ``"server-validation"``: the server chooses it each round, with ``validate``;
            ``"group-server-validation"``: and from there on one for each group of layers.
        values: A row of `fl_darex.wire.codings.CODINGS`; all but ``"sign"`` and ``"lookup2"`` are
            unbiased, and all but ``"fp64"``, which is for models in float64, send float32's
            precision at most. Or a coding of your own, for clients with
            ``DarexMod(codings=[...])``.
        scale: Of ``values="eden1"`` to ``"eden4"``: ``"unbiased"``: clients' mean is right on
            average; ``"least-squares"``: each packet nearer to its update, and shorter.
        mask: ``"client"``: independent masks; ``"round"``: all clients of a round share one;
            ``"disjoint"``: clients of a round keep different entries, as long as their slots are of
            one run of 1 / (1-p) slots (0 to 9 at p = .9), between which masks are independent;
            ``"auto"``: begins with ``"client"`` and takes what suits the clients' measured `rho`.
        count: ``"random"``; ``"exact"``: each tensor keeps its share, rounded at random, as
            disjoint masks do in any case.
        rotate: Whether each round draws masks of its own; False: one draw for the whole run, and
            all other entries stay as they are.
        mask_first: Whether clients train only the entries that their mask keeps, which their app
            finds with `fl_darex.clients.told` (Random Masking, ICML 2024: with a learning rate 100
            to 1,000 times as large). Nothing is dropped then, and q is 1. A change beside the mask
            is an error of that client.
        method: ``"dare"``, ``"structured"``, ``"magnitude"``, ``"wanda"`` (for clients with
            ``DarexMod(norms=...)``), or ``"dense"``: the same path with nothing dropped; one of
            `fl_darex.compression.methods.RIVALS`, which others have published. Or a
            `fl_darex.compression.Method` of your own, for clients with ``DarexMod(methods=[...])``.
        downlink: How the model goes to the clients. ``"dense"``: whole, to everybody.
            ``"update"``: what changed since the version that a client holds. ``"server"``: the
            largest entries of that, the rest is kept for later rounds. Or a
            `fl_darex.compression.downlink.DownlinkPolicy` of your own.
        base_held: Whether all clients are ``DarexMod(base=...)`` and hold the initial model, so
            that nobody is sent it. Without this they say so themselves in the handshake. A client
            that turns out to hold something else is sent the model after all.
        downlink_p: Fraction of the server's step that ``"server"`` keeps back; None: ``p``.
        downlink_values: How the server's packets write numbers; None: as ``values``.
        seed: Seed of masks and of the sampling of clients, in [0, 2**63).
        dense: Names of tensors whose whole delta is sent, such as a fresh head.
        dense_below: Floating-point tensors of at most so many entries are sent whole, too; 0: none.
            ``"auto"``: the smallest ones, while they have, together, at most 256 entries or a
            twentieth of what survives of the model.
        clip: Largest L2 norm of a client's update, survivors over q and dense tensors together;
            longer ones are scaled down. None: as long as they are, unless the wrapped strategy
            adds noise for a norm.
        max_weight: Largest weight that is believed, such as the most examples that a client can
            have; a client that claims more does not count. The default believes any number of
            examples, so that one client may be the mean; the log then names it.
        replies: What the wrapped strategy is given: ``"mean"``: one reply that stands for all;
            ``"each"``: all replies with their own metrics and records, the mean in place of their
            arrays; ``"support"``: all replies with their own values, where all have some;
            ``"own"``: all replies with the arrays that each packet stands for, whole, which is
            right for what is linear in them and takes memory for clients x model. ``"auto"``:
            ``"support"`` for Flower's strategies that compare clients, ``"each"`` for those that
            add noise, else ``"mean"``; one with an ``aggregate_train`` of its own has to say.
        validate: Of ``q="server-validation"`` and ``"group-server-validation"``: returns the loss
            of a model on examples that are neither trained on nor reported; called with arrays by
            name, some 7 times a round, with groups up to 120 times.
        secure: Adds the updates of a round so that the server learns their sum and none of them;
            needs ``mask="round"``. ``values`` is not used: `SecureAggregation` says how numbers
            travel. With ``clip``, clients clip their own updates.
        on_reply: Called with the ledger's entry as each reply arrives.
        handshake: Whether new nodes are asked for their partition and what they hold; ``DarexMod``
            answers. Without, slots go by node id, and the same seed gives the same run only where
            the ids are the same. For apps without the mod that would train on a message without a
            model.
        uplink: Everything about the way up in one value, in place of p, q, values, mask, count,
            method, seed, dense, dense_below and options.
        checkpoint: A folder for this run's checkpoints, or `Checkpoints` with settings of them. A
            `start` that finds one there, left by a process that is gone, goes on after its round,
            on CPU to the same bits: nobody is asked in the rounds before, which are told again to
            the wrapped strategy's own `start`, so that its result is that of the whole run. One of
            another run, or a damaged one, is refused. After the last round it is removed.
        options: The method's own settings: ``scope`` of magnitude and WANDA (among which entries
            the largest are chosen: ``"layer"``, ``"row"``, ``"global"``), ``columns`` of structured
            pruning (fraction of the input columns that is kept); for all others see
            ``METHODS[name].options``.

    Attributes are those of `PackedRounds`: ``ledger``, ``q``, ``rho`` and ``counted``.

    Raises:
        TypeError: If an argument is of another kind: a class in an object's place, a text in a
            number's, a strategy of Flower's former API.
        ValueError: If an argument is outside its range, or a setting of the way up stands beside
            ``uplink``.
    """

    def __init__(
        self,
        strategy: Strategy,
        p: float = 0.99,
        *,
        q: float | QChoice = "dare",
        values: ValuesChoice | Coding = "fp16",
        scale: Scale = "unbiased",
        mask: MaskChoice = "client",
        count: CountChoice = "random",
        rotate: bool = True,
        mask_first: bool = False,
        method: MethodChoice | Method = "dare",
        downlink: DownlinkChoice | DownlinkPolicy = "update",
        base_held: bool = False,
        downlink_p: float | None = None,
        downlink_values: ValuesChoice | Coding | None = None,
        seed: int = 0,
        dense: Iterable[str] = (),
        dense_below: int | Literal["auto"] = "auto",
        clip: float | None = None,
        max_weight: float = LARGEST_WEIGHT,
        replies: FormChoice = "auto",
        validate: Callable[[Mapping[str, Any]], float] | None = None,
        secure: SecureAggregation | None = None,
        on_reply: Callable[[Entry], None] | None = None,
        handshake: bool = True,
        uplink: Uplink | None = None,
        checkpoint: str | PathLike[str] | Checkpoints | None = None,
        **options: Scalar,
    ) -> None:
        _check_strategy(strategy)
        max_weight = checks.positive("max_weight", max_weight)
        clip = None if clip is None else checks.numeric("clip", clip, "a norm above 0, or None")
        checks.function("validate", validate)
        checks.function("on_reply", on_reply)
        checks.instance("secure", secure, SecureAggregation | None, "a SecureAggregation or None")
        base_held = checks.flag("base_held", base_held)
        if downlink_p is not None:
            wanted = "a number in [0, 1), or None"
            downlink_p = checks.real("downlink_p", downlink_p, wanted, lambda x: 0 <= x < 1)
        more: dict[str, Any] = dict(q=q, values=values, scale=scale, mask=mask, count=count)
        more |= dict(method=method, rotate=rotate, mask_first=mask_first)
        apart = uplink is None
        uplink = _uplink(
            uplink, dict(p=p, seed=seed, dense=dense, dense_below=dense_below, **more), options
        )
        wrapped = Wrapped(strategy, replies)
        clip = tightest(clip, wrapped.clipping_norm)
        check_form(uplink, wrapped.form, strategy, clip)
        broadcast = broadcast_for(downlink, uplink, downlink_p, downlink_values, base_held)
        if apart:
            more |= dict(downlink_p=downlink_p, downlink_values=downlink_values, **options)
            _say_idle(more, uplink, broadcast.policy)
        down = Downlink(
            policy=_named(downlink) or "",
            keep=uplink.keep if downlink_p is None else keep_threshold(downlink_p),
            values=_named(downlink_values) or uplink.values,
            held=base_held,
        )
        kept = checkpoints_for(checkpoint, uplink, down, dict(clip=clip, secure=repr(secure)))
        most = max_weight
        super().__init__(wrapped, uplink, broadcast, clip, most, secure, validate, on_reply, kept)
        self._roster.asks = checks.flag("handshake", handshake)
        self._asks_for_sum = secure
        self._downlink = down
        self._checked = False

    def check(self, initial_arrays: ArrayRecord, clients: int | None = None) -> Check:
        """Return what is expected of a run, before it: bytes, what is sent whole, what fails.

        ``print(strategy.check(arrays))`` shows a line for each; the first round logs the same.

        Args:
            initial_arrays: The model that the run starts from.
            clients: How many take part in a round; None: the least that the wrapped strategy asks.
        """
        if clients is None:
            clients = int(getattr(self._wrapped.having("min_train_nodes"), "min_train_nodes", 2))
        known = (self._wrapped, self._uplink, self._downlink, self._asks_for_sum)
        with self._wrapped.itself():
            return check(*known, initial_arrays, clients)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `PackedRounds.configure_train`; the first one logs what is expected."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages and not self._checked:
            self._checked = True
            found = self.check(arrays, len(messages))
            for line in found.lines():
                log(INFO, "DAREx: %s", line)
            for line in found.problems:
                log(WARNING, "DAREx: %s", line)
        return messages


def _uplink(uplink: Uplink | None, said: dict[str, Any], options: Mapping[str, Scalar]) -> Uplink:
    """Return what is asked: the one value, or one made of the settings.

    Raises:
        TypeError: If a setting is of another kind.
        ValueError: If one is outside its range, or the value and settings beside it are given.
    """
    if uplink is not None:
        checks.instance("uplink", uplink, Uplink, "an Uplink or None")
        usual = signature(DarexStrategy).parameters
        besides = sorted([*options, *(n for n, v in said.items() if v != usual[n].default)])
        if besides:
            raise ValueError(f"uplink says everything about the way up; {besides} besides")
        return uplink
    dense = said.pop("dense")
    if not isinstance(dense, Iterable):
        raise TypeError(f"dense must be a list of names, got {dense!r}")
    dense = dense if isinstance(dense, str) else tuple(dense)  # `Uplink` refuses a text
    wanted = "a whole number in [0, 2**63)"
    seed = checks.whole("seed", said.pop("seed"), wanted, lambda n: True)  # `Uplink` has the range
    p = checks.real("p", said.pop("p"), "a number in [0, 1)")
    method = said.pop("method")
    return Uplink.of(method, p, seed=seed, dense=dense, options=options, **said)


def _say_idle(said: Mapping[str, Any], uplink: Uplink, policy: DownlinkPolicy) -> None:
    usual = signature(DarexStrategy).parameters
    given = {n: v for n, v in said.items() if n not in usual or v != usual[n].default}
    for line in idle_arguments(given, uplink, policy):
        log(WARNING, "DAREx: %s", line)


def _named(chosen: str | Coding | DownlinkPolicy | None) -> str | None:
    return chosen if isinstance(chosen, str | None) else chosen.name


def _check_strategy(strategy: Any) -> None:
    """Raise `TypeError` unless something is a strategy of Flower's present API."""
    kind = strategy if isinstance(strategy, type) else type(strategy)
    if any(one.__module__.startswith("flwr.server.strategy") for one in kind.__mro__):
        raise TypeError(
            f"{kind.__name__} is of Flower's former API (flwr.server.strategy), whose clients and "
            f"rounds are others: take `from flwr.serverapp.strategy import {kind.__name__}`, or "
            "what is like it there"
        )
    if isinstance(strategy, PackedRounds):
        raise TypeError("strategy is a DarexStrategy already; give it the strategy inside")
    wanted = "a strategy of flwr.serverapp.strategy, such as FedAvg()"
    checks.instance("strategy", strategy, Strategy, wanted)
