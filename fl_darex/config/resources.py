"""What simulated clients may use: for all of them, or for classes of clients written as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fl_darex.config.sections import Section
from fl_darex.errors import nearest

_FORM = "write 'CLIENTS: SETTING=NUMBER ...; ...', such as '0-9,12: num-gpus=1 num-cpus=4'"
_SETTINGS = ("num-cpus", "num-gpus", "actors")
_CUSTOM = "custom."
_PIECE = re.compile(r"(\d{1,7})(?:-(\d{1,7}))?")
_GPUS = "'auto', a fraction below 1, or a whole number from 0 to 64"


def _gpus(found: str | float) -> str | float:
    # Ray takes no 1.5, and counts in ten-thousandths.
    if found == "auto" or (isinstance(found, float) and _can_be_gpus(found)):
        return found
    raise ValueError(f"resources.num-gpus = {found!r} is not allowed; allowed: {_GPUS}")


def _can_be_gpus(number: float) -> bool:
    return number == 0 or 1e-4 <= number < 1 or number == int(number)


Gpus = Annotated[Literal["auto"] | Annotated[float, Field(ge=0.0, le=64.0)], AfterValidator(_gpus)]

Class = tuple[Sequence[int], Mapping[str, Any]]
"""Partitions, and what they need in place of the others, as arguments of `Resources`."""


def classes_of(text: str) -> list[Class]:
    """Return classes of clients that are written as ``"0-9,12: num-gpus=1; 13: custom.tpu=1"``.

    Raises:
        ValueError: If it is not written so, or a client is in two classes.
    """
    classes: list[Class] = []
    for part in filter(str.strip, text.split(";")):
        who, colon, what = part.partition(":")
        if not colon or not what.split():
            raise _wrong(text, f"{part.strip()!r} does not say what clients need; {_FORM}")
        classes.append((list(_partitions(text, who)), _needs(text, what.split())))
    times = Counter(partition for partitions, _ in classes for partition in partitions)
    if twice := [partition for partition, count in times.items() if count > 1]:
        raise _wrong(text, f"client {min(twice)} is in it twice, and can be in one class")
    return classes


def _partitions(text: str, who: str) -> Iterator[int]:
    for piece in who.split(","):
        found = _PIECE.fullmatch(piece.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise _wrong(text, f"{piece.strip()!r} is no client and no range of clients; {_FORM}")
        yield from range(first, last + 1)


def _needs(text: str, settings: Sequence[str]) -> dict[str, Any]:
    needs: dict[str, Any] = {}
    custom: dict[str, float] = {}
    for setting in settings:
        key, _, written = setting.partition("=")
        if key.startswith(_CUSTOM) and key != _CUSTOM:
            custom[key.removeprefix(_CUSTOM)] = _amount(text, "custom", setting, written)
        elif key in _SETTINGS:
            needs[key.replace("-", "_")] = _amount(text, key, setting, written)
        else:
            known = ", ".join((*_SETTINGS, "custom.NAME"))
            raise _wrong(text, f"{key!r} is none of {known}{nearest(key, _SETTINGS)}")
    return {**needs, "custom": custom} if custom else needs


def _amount(text: str, key: str, setting: str, written: str) -> Any:
    if key == "num-gpus" and written == "auto":
        return written
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if key == "num-gpus" and 0 <= value <= 64 and _can_be_gpus(value):
        return value
    if key == "actors" and 0 <= value <= 65536 and value == int(value):
        return int(value)
    if key in ("num-cpus", "custom") and 1e-4 <= value <= 4096:
        return value
    wanted = {"num-gpus": _GPUS, "actors": "a whole number from 0 to 65536"}
    raise _wrong(text, f"{setting!r} must be {wanted.get(key, 'a number from 0.0001 to 4096')}")


def _wrong(text: str, trouble: str) -> ValueError:
    return ValueError(f"resources.classes = {text!r} is not allowed: {trouble}")


def _checked(text: str) -> str:
    classes_of(text)
    return text


class ResourcesConfig(Section):
    """What a simulated client may use; Ray places clients by these numbers."""

    num_cpus: float = Field(1.0, gt=0.0, le=4096.0, description="cores per client")
    num_gpus: Gpus = Field(
        0.0, description="GPUs per client, may be a fraction; auto: measured on the first client"
    )
    actors: int = Field(0, ge=0, le=65536, description="worker processes; 0 = as many as fit")
    ray_address: str = Field("", description="an existing Ray cluster; empty = start one")
    classes: Annotated[str, AfterValidator(_checked)] = Field(
        "", description="other needs of some clients, '0-9: num-gpus=1; 10-99: num-cpus=0.5'"
    )

    @property
    def for_all(self) -> dict[str, Any]:
        """What a client needs that is in no class, as arguments of `Resources`."""
        return self.model_dump(exclude={"classes"})

    @property
    def by_class(self) -> list[Class]:
        """What each class needs: its own settings, and else those of all."""
        rest = self.model_dump(include={"num_cpus", "num_gpus"})
        return [(partitions, {**rest, **own}) for partitions, own in classes_of(self.classes)]

    @property
    def uses_gpus(self) -> bool:
        """Whether any client has a GPU."""
        return any(own["num_gpus"] != 0 for own in (self.for_all, *(o for _, o in self.by_class)))
