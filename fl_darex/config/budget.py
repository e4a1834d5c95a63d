"""What `compress.budget` chooses, once the sizes of the model's tensors are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_darex.compression.budget import within
from fl_darex.compression.expected import expected_noise
from fl_darex.compression.uplink import Uplink
from fl_darex.config.idle import remarks_on_idle, without_effect
from fl_darex.config.run import RunConfig, make_config
from fl_darex.config.sections import bytes_of
from fl_darex.errors import ConfigError


def within_budget(
    config: RunConfig, tensors: Mapping[str, Any], dense: tuple[str, ...]
) -> tuple[RunConfig, tuple[str, ...]]:
    """Return a configuration with p and values in place of its budget, and what was chosen.

    Args:
        config: With a budget.
        tensors: The exchanged tensors, by name.
        dense: Names of those whose whole delta is sent.

    Returns:
        The same run without a budget, and a line that says what it is and what noise to expect;
        then one for each setting that does nothing beside what was chosen.

    Raises:
        ConfigError: If the budget is too small for a packet, or no coding goes with the other
            settings.
    """
    budget = config.compress.budget
    try:
        found = within(
            bytes_of(budget), tensors, lambda p, values: _with(config, p, values).uplink(dense)
        )
    except ValueError as error:
        raise ConfigError(f"compress.budget = {budget!r}: {error}") from None
    chosen = _with(config, found.p, found.values)
    said = (
        f"compress.budget = {budget!r} chooses compress.p = {found.p:g} and compress.values = "
        f"{found.values!r}: at most about {found.up_bytes:,} bytes up, a client and round"
        f"{_noise(chosen.uplink(dense), config.federation.sample_size)}"
    )
    return chosen, (said, *_idle(config, chosen))


def _with(config: RunConfig, p: float, values: str) -> RunConfig:
    said = {"compress.budget": "", "compress.p": p, "compress.values": values}
    return make_config(config.flat() | said)


def _idle(before: RunConfig, chosen: RunConfig) -> list[str]:
    """Return a line for each setting that somebody made and that what was chosen leaves idle."""
    defaults, known = RunConfig().flat(), without_effect(before, "")
    set_ = [key for key, value in before.flat().items() if value != defaults.get(key)]
    return remarks_on_idle(chosen, [key for key in set_ if key not in known], "")


def _noise(uplink: Uplink, clients: int) -> str:
    noise = expected_noise(uplink, clients)
    return "" if noise is None else f"; noise of a round {noise:.2g} times a client's change"
