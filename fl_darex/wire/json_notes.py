"""Notes: settings that ride in a message's configuration as one JSON text, checked by field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, NamedTuple, Self, get_type_hints

from fl_darex.errors import PacketError, Reason

HEX = frozenset("0123456789abcdef")


class Rule(NamedTuple):
    """What a field must be in JSON: in words, how to tell, and what it then becomes."""

    words: str
    holds: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value


class Note:
    """Settings that one side tells the other: a dataclass, and nothing else.

    Fields that are ``Annotated`` with a `Rule` are in the text, in their order, and the wire
    version after them; nothing else may be. Those in ``usual`` are left out where they are what it
    says: each message has a note, and beside a small packet its bytes count. A class names the
    text's ``key`` in a configuration, ``what`` it is called in errors, and the wire version that
    it ``speaks``.
    """

    key: ClassVar[str]
    what: ClassVar[str]
    speaks: ClassVar[int]
    rules: ClassVar[Mapping[str, Rule]]
    usual: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, *, key: str, what: str, speaks: int = 1) -> None:
        """Take the rules from the fields, unless the class has a table of its own."""
        cls.key, cls.what, cls.speaks = key, what, speaks
        if "rules" not in vars(cls):
            hints = get_type_hints(cls, include_extras=True).items()
            marked = {name: getattr(hint, "__metadata__", ()) for name, hint in hints}
            cls.rules = {name: extras[0] for name, extras in marked.items() if extras}

    def fields(self) -> dict[str, Any]:
        """Return what the text says."""
        return {name: getattr(self, name) for name in self.rules}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Return the note of which each field keeps its rule."""
        return cls(**fields)

    def attach(self, config: MutableMapping[str, Any]) -> None:
        """Write the note into a message's configuration."""
        usual, fields = self.usual, self.fields()
        told = {k: v for k, v in fields.items() if k not in usual or not _same(v, usual[k])}
        config[self.key] = json.dumps(told | {"version": self.speaks}, separators=(",", ":"))

    @classmethod
    def detach(cls, config: MutableMapping[str, Any]) -> Self | None:
        """Take the note out of a message's configuration; None where there is none.

        Raises:
            PacketError: If it is not one that this version understands.
        """
        text, what = config.pop(cls.key, None), cls.what
        if text is None:
            return None
        try:
            fields = json.loads(text)
            version = fields.pop("version")
        except (AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise PacketError(f"{what} are not readable: {error}", Reason.TERMS) from None
        if version != cls.speaks or type(version) is not int:
            raise PacketError(
                f"{what} are of wire version {version}, this side speaks {cls.speaks}; "
                "install the same fl-darex version on both",
                Reason.TERMS,
            )
        fields = copy.deepcopy(dict(cls.usual)) | fields
        if strange := sorted(set(fields).symmetric_difference(cls.rules)):
            raise PacketError(
                f"{what} are not readable: {strange} missing or unknown", Reason.TERMS
            )
        try:
            return cls.of(cls._checked(fields))
        except RecursionError:  # nested nearly too deep to read is too deep for an error's text
            raise PacketError(f"{what} are not readable: nested too deep", Reason.TERMS) from None

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name, (words, holds, read) in cls.rules.items():
            if not holds(fields[name]):
                odd = f"{name} in {cls.what} is {fields[name]!r}, not {words}"
                raise PacketError(odd, Reason.TERMS)
            fields[name] = read(fields[name])
        return fields


def _same(value: Any, usual: Any) -> bool:
    """Return whether JSON has one text for both."""
    value = list(value) if isinstance(value, tuple) else value
    return type(value) is type(usual) and bool(value == usual)


def is_hex(value: Any, digits: int) -> bool:
    """Return whether a value is text of so many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and set(value) <= HEX


def integer(words: str, least: int, end: int) -> Rule:
    """Return the rule of an integer from ``least`` to ``end - 1``."""
    return Rule(words, lambda value: type(value) is int and least <= value < end)


COUNT = integer("an integer in [0, 2**63)", 0, 1 << 63)
"""The rule of a round, a slot, or another number that only counts."""

DIGITS = Rule("16 hexadecimal digits", lambda value: is_hex(value, 16))

TEXT = Rule("text", lambda value: isinstance(value, str))

NAMES = Rule(
    "a list of names",
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    tuple,
)
