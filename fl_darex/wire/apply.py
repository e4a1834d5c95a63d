"""What a packet makes of a model: the same bits on the server and on every client.

Only additions and one rounding per entry, in float32 at least, in an order that does not matter:
IEEE arithmetic gives the same result on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_darex.positions import by_tensor
from fl_darex.wire.reader import Packet

Arrays = dict[str, NDArray[Any]]


def apply_packet(arrays: Mapping[str, NDArray[Any]], packet: Packet) -> Arrays:
    """Return the tensors after a packet; tensors that it does not change are shared, not copied.

    Args:
        arrays: The tensors before, of the packet's layout.
        packet: A packet of the tensors' layout.

    Raises:
        PacketError: If its mask keeps another number of entries than it has.
    """
    result, start = dict(arrays), 0
    # Tensor by tensor: positions of a wide union take twice the memory of the model.
    for index, (name, positions) in enumerate(by_tensor(packet.layout, packet.mask)):
        end = start + positions.size
        if end > packet.header.survivors:
            packet.check_count(end)
        if positions.size:
            change = packet.numbers(start, end)
            change /= np.float32(packet.q_of(index))
            result[name] = _moved(arrays[name], positions, change)
        start = end
    packet.check_count(start)
    for name, change in packet.dense().items():
        result[name] = _moved(arrays[name], np.arange(change.size), change)
    return result | packet.raw()


def _moved(
    array: NDArray[Any], positions: NDArray[np.int64], change: NDArray[np.float32]
) -> NDArray[Any]:
    copy = np.array(array, order="C")
    flat = copy.reshape(-1)
    wide = np.result_type(array.dtype, np.float32)
    with np.errstate(over="ignore"):  # a server's own step may be that large
        flat[positions] = (flat[positions].astype(wide, copy=False) + change).astype(array.dtype)
    return copy
