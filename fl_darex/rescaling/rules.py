"""The names of the rules by which q is chosen in a federated run."""

from __future__ import annotations

Q_V, Q_E = "q-v", "q-e"
LAYER_Q_V, LAYER_Q_E = "layer-q-v", "layer-q-e"
CURVATURE = "curvature"

RULES = (Q_V, Q_E, LAYER_Q_V, LAYER_Q_E, CURVATURE)
"""By the client. The paper's four: ``q-v``: validation on labelled examples; ``q-e``: the change
of the last layer's output. One q for all layers (Alg. 2), or one for each (Eq. 5, Alg. 3).
``curvature``: one q for each tensor, by gradients; see `fl_darex.rescaling.curvature_q`."""

SERVER_VALIDATION, GROUP_SERVER_VALIDATION = "server-validation", "group-server-validation"

SERVER_RULES = (SERVER_VALIDATION, GROUP_SERVER_VALIDATION)
"""By the server: along the averaged step, on examples that it holds out. One q for all layers, or
from there on one for each group of layers."""

PER_LAYER = (LAYER_Q_V, LAYER_Q_E)
"""The rules that find one q for each linear layer, by its inputs."""

PER_TENSOR = (*PER_LAYER, CURVATURE)
"""The rules by which the packets of clients hold one q for each tensor."""

LABELLED = (Q_V, LAYER_Q_V)
"""The rules that need labelled examples which the client has not trained on."""
