"""What can be chosen by name, for type checkers and editors; tables and checks know the same."""

from __future__ import annotations

from typing import Literal, get_args

MaskChoice = Literal["client", "round", "disjoint", "auto"]
MASKS: tuple[MaskChoice, ...] = get_args(MaskChoice)
"""An independent mask for each client, one for all clients of a round, masks that share no entry,
or whichever of these measures best (`fl_darex.strategies.masks`)."""

CountChoice = Literal["random", "exact"]
COUNTS: tuple[CountChoice, ...] = get_args(CountChoice)
"""How many survivors a tensor has: as drawn, or its share, rounded at random."""

QChoice = Literal[
    "dare",
    "q-v",
    "q-e",
    "layer-q-v",
    "layer-q-e",
    "curvature",
    "server-validation",
    "group-server-validation",
]
"""``"dare"`` is 1-p; the others are rules of `fl_darex.rescaling.rules`."""

# Rows can be added to these tables, so any text may be right.
MethodChoice = (
    Literal["dense", "dare", "structured", "magnitude", "wanda"]
    | Literal["topk", "randk", "stc", "signsgd", "sparseloco", "dgc", "powersgd"]
    | str
)
ValuesChoice = (
    Literal[
        "fp64", "fp32", "fp16", "bf16", "int8", "int4", "eden4", "eden3", "eden2", "eden1", "sign"
    ]
    | Literal["qsgd8", "qsgd4", "qsgd2", "lookup2"]
    | str
)
DownlinkChoice = Literal["dense", "update", "server"] | str
