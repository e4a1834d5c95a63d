"""The names of the rules by which q is chosen in a federated run."""

from __future__ import annotations

Q_V, Q_E = "q-v", "q-e"
LAYER_Q_V, LAYER_Q_E = "layer-q-v", "layer-q-e"

RULES = (Q_V, Q_E, LAYER_Q_V, LAYER_Q_E)
"""By the client: the paper's four. ``q-v``: validation on labelled examples; ``q-e``: the change
of the last layer's output. One q for all layers (Alg. 2), or one for each (Eq. 5, Alg. 3)."""

SERVER_VALIDATION = "server-validation"
"""By the server: along the averaged step, on examples that it holds out."""

LABELLED = (Q_V, LAYER_Q_V)
"""The rules that need labelled examples which the client has not trained on."""
