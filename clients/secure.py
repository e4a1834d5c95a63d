"""The client half of secure aggregation: answers the server's stages, and masks a packet.

What a client must remember between stages lies in its ``context.state``, which simulations and
SuperNodes keep. Each stage is answered once: two vectors under the same masks would tell their
difference, and two answers about drop-outs could unmask.
"""

from __future__ import annotations

from collections.abc import Mapping
from logging import WARNING
from typing import Any, NoReturn

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from numpy.typing import NDArray

from fl_darex.compression.terms import Terms
from fl_darex.compression.update import SparseUpdate
from fl_darex.errors import DeltaError, PacketError, Reason
from fl_darex.flower.records import SEALED_STYPE, packet_record
from fl_darex.secagg import keys
from fl_darex.secagg.masks import add_shared, own_mask
from fl_darex.secagg.messages import (
    KEYS,
    MASKED,
    SECURE_KEY,
    SHARES,
    UNREAD,
    Stage,
    join,
    rows_of,
)
from fl_darex.secagg.numbers import to_vector
from fl_darex.secagg.ring import Vector
from fl_darex.secagg.sealed_packet import SealedHeader
from fl_darex.secagg.shares import SHARE_BYTES, split

Arrays = Mapping[str, NDArray[Any]]


def answer(stage: Stage, state: RecordDict) -> ConfigRecord:
    """Return the answer to a stage in which nothing is trained.

    Args:
        stage: From the server: ``keys``, ``shares`` or ``unmask``.
        state: The client's own, of its context; changed.

    Raises:
        PacketError: If the stage does not follow the one before, or asks for what an honest server
            has no use for.
    """
    if stage.stage == KEYS:
        return _make_keys(stage, state)
    return _share(stage, state) if stage.stage == SHARES else _unmask(stage, state)


def hide(
    reply: Message,
    update: SparseUpdate,
    before: Arrays,
    terms: Terms,
    stage: Stage,
    state: RecordDict,
) -> Message:
    """Replace everything in a reply by its sealed packet and the metrics that were asked for.

    Args:
        reply: The app's own.
        update: What its packet says, in fp32.
        before: The tensors that the client was sent.
        terms: What it was told.
        stage: The server's stage ``masked``.
        state: The client's own; changed.

    Raises:
        PacketError: If the stage does not follow the one before.
        DeltaError: If the reply has no usable weight.
    """
    records = reply.content.metric_records.values()
    metrics = {key: value for record in records for key, value in record.items()}
    weight = metrics.get(stage.weight) if stage.weight else stage.max_weight
    if not isinstance(weight, int | float):
        raise DeltaError(
            f"secure aggregation needs the weight of the update, and the reply's metric "
            f"{stage.weight!r} is {weight!r}"
        )
    known = _remembered(stage, state, SHARES)
    vector = to_vector(update, before, float(weight), stage, terms)
    _mask(vector, stage, known)
    state[SECURE_KEY] = ConfigRecord(known | {"stage": MASKED, "letters": stage.rows})
    packet = SealedHeader.of(stage, terms, update.layout, update.count).seal(vector.write())
    clear = MetricRecord({key: metrics[key] for key in stage.metrics if key in metrics})
    arrays = packet_record(packet, SEALED_STYPE)
    reply.content = RecordDict({"arrays": arrays, "metrics": clear})
    return reply


def _make_keys(stage: Stage, state: RecordDict) -> ConfigRecord:
    channel, masking = keys.new_secret(), keys.new_secret()
    state[SECURE_KEY] = ConfigRecord(
        {"session": stage.session, "stage": KEYS, "channel": channel, "masking": masking}
    )
    return ConfigRecord({"keys": keys.public_key(channel) + keys.public_key(masking)})


def _share(stage: Stage, state: RecordDict) -> ConfigRecord:
    known = _remembered(stage, state, KEYS)
    peers = rows_of(stage.rows, 2 * keys.PUBLIC_BYTES)
    own = keys.public_key(known["channel"]) + keys.public_key(known["masking"])
    _check_peers(stage, peers, own)
    holders = sorted([*peers, stage.slot])
    seed, session = keys.new_secret(), bytes.fromhex(stage.session)
    of_seed = split(seed, stage.threshold, len(holders))
    of_key = split(known["masking"], stage.threshold, len(holders))
    given = {who: of_seed[at] + of_key[at] for at, who in enumerate(holders)}
    sealed = b"".join(
        keys.seal(known["channel"], keys.halves(both)[0], session, stage.slot, peer, given[peer])
        for peer, both in peers.items()
    )
    known |= {
        "stage": SHARES,
        "seed": seed,
        "kept": given[stage.slot],
        "peers": stage.rows,
        "threshold": stage.threshold,
    }
    state[SECURE_KEY] = ConfigRecord(known)
    return ConfigRecord({"commitment": keys.commitment(seed, session), "shares": sealed})


def _check_peers(stage: Stage, peers: Mapping[int, bytes], own: bytes) -> None:
    holders = len(peers) + 1
    if stage.slot in peers or len(peers) < 2:
        _refuse(f"names {len(peers)} neighbours, or this client as its own; 2 others are needed")
    if not holders / 2 < stage.threshold <= holders:
        _refuse(
            f"asks for {stage.threshold} shares of {holders} to rebuild a secret; it must be more "
            "than half, or a server that tells two stories could unmask"
        )
    public = [half for both in [own, *peers.values()] for half in keys.halves(both)]
    if len(set(public)) < len(public):
        _refuse("names the same public key twice")


def _mask(vector: Vector, stage: Stage, known: Mapping[str, Any]) -> None:
    """Add the client's own mask, and one for each neighbour that is still there."""
    session, slot = bytes.fromhex(stage.session), stage.slot
    peers = rows_of(known["peers"], 2 * keys.PUBLIC_BYTES)
    there = rows_of(stage.rows, keys.LETTER_BYTES)
    if not set(there) <= set(peers) or len(there) + 1 < known["threshold"]:
        _refuse(f"names {len(there)} neighbours, fewer than agreed on or others")
    vector.add(own_mask(vector.shape, known["seed"], session, slot))
    for peer in there:
        public = keys.halves(peers[peer])[1]
        add_shared(vector, known["masking"], public, session, slot, peer)


def _unmask(stage: Stage, state: RecordDict) -> ConfigRecord:
    """Return shares of the own masks of clients that stayed, and of the keys of those that did not.

    Never both of one client: the two together open its vector. A letter that cannot be read costs
    the share in it: the answer says whose it was, and zeros stand in for the share.
    """
    known = _remembered(stage, state, MASKED)
    peers = rows_of(known["peers"], 2 * keys.PUBLIC_BYTES)
    letters = rows_of(known["letters"], keys.LETTER_BYTES)
    alive = set(rows_of(stage.rows, 0))
    members = sorted([*letters, stage.slot])
    if stage.slot not in alive or not alive <= set(members) or len(alive) < known["threshold"]:
        _refuse(
            f"says that {len(alive)} clients are left; at least {known['threshold']} of those "
            "that were there are needed, this one among them"
        )
    del state[SECURE_KEY]  # whatever comes after is not answered
    session, found, unread = bytes.fromhex(stage.session), [], []
    for member in members:
        shares = known["kept"]
        if member != stage.slot:
            public, letter = keys.halves(peers[member])[0], letters[member]
            try:
                shares = keys.unseal(known["channel"], public, session, member, stage.slot, letter)
            except PacketError as error:
                log(WARNING, "secure aggregation: the letter of client %s: %s", member, error)
                unread.append(member)
                shares = bytes(2 * SHARE_BYTES)
        of_seed, of_key = shares[:SHARE_BYTES], shares[SHARE_BYTES:]
        found.append(of_seed if member in alive else of_key)
    answered: dict[str, Any] = {"shares": b"".join(found)}
    if unread:
        answered[UNREAD] = join((member, b"") for member in unread)
    return ConfigRecord(answered)


def _remembered(stage: Stage, state: RecordDict, before: str) -> dict[str, Any]:
    """Return what the stage before left."""
    known: dict[str, Any] = dict(state.config_records.get(SECURE_KEY, {}))
    if known.get("session") != stage.session or known.get("stage") != before:
        _refuse(f"asks for {stage.stage!r}, which does not follow; each is answered once")
    return known


def _refuse(what: str) -> NoReturn:
    raise PacketError(f"the server's stage of secure aggregation {what}", Reason.TERMS)
