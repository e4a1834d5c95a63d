"""How survivors are scaled: each stands for its value divided by q."""

from fl_darex.rescaling.fixed import rescale, resolve_q

__all__ = ["rescale", "resolve_q"]
