"""What crosses the network."""

from fl_darex.errors import PacketError
from fl_darex.wire.packet import decode, encode
from fl_darex.wire.terms import Terms

__all__ = ["PacketError", "Terms", "decode", "encode"]
