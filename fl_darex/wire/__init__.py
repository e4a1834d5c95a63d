"""What crosses the network: bytes, and nothing that knows Flower."""

from fl_darex.errors import PacketError
from fl_darex.wire.packet import decode, encode

__all__ = ["PacketError", "decode", "encode"]
