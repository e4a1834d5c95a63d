"""What can be chosen by name, for type checkers and editors; tables and checks know the same."""

from __future__ import annotations

from typing import Literal, get_args

MaskChoice = Literal["client", "round"]
MASKS: tuple[MaskChoice, ...] = get_args(MaskChoice)
"""One mask for each client, or one for all clients of a round."""

CountChoice = Literal["random", "exact"]
COUNTS: tuple[CountChoice, ...] = get_args(CountChoice)
"""How many survivors a tensor has: as drawn, or its share, rounded at random."""

QChoice = Literal["dare", "q-v", "q-e", "layer-q-v", "layer-q-e", "server-validation"]
"""``"dare"`` is 1-p; the others are rules of `fl_darex.rescaling.rules`."""

# Rows can be added to these tables, so any text may be right.
MethodChoice = Literal["dense", "dare", "structured", "magnitude", "wanda"] | str
ValuesChoice = (
    Literal[
        "fp64", "fp32", "fp16", "bf16", "int8", "int4", "eden4", "eden3", "eden2", "eden1", "sign"
    ]
    | str
)
DownlinkChoice = Literal["dense", "update", "server"] | str
