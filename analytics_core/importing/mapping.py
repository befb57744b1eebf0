"""Which column of a file becomes which field of an event: told by flags, else recognised by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import asdict

from analytics_core.errors import ConfigError, near

Field = Literal["event", "user", "anonymous", "session", "timestamp", "id"]
ABSENT: Final = "-"
"""Given as a column name it says that the file has no such column."""

_NAMES: Final[dict[Field, tuple[str, ...]]] = {
    "event": ("event", "eventname", "eventtype", "name", "action", "activity"),
    "user": ("userid", "user", "uid", "customerid", "customer", "memberid"),
    "anonymous": ("anonymousid", "anonid", "visitorid", "fullvisitorid", "deviceid", "distinctid", "cookieid"),
    "session": ("sessionid", "session", "usersession", "visitid"),
    "timestamp": (
        "timestamp",
        "eventtimestamp",
        "eventtime",
        "time",
        "ts",
        "datetime",
        "occurredat",
        "createdat",
        "date",
    ),
    "id": ("messageid",),
}
_REQUIRED: Final[tuple[Field, ...]] = ("event", "timestamp")
_WIRE: Final[dict[Field, str]] = {
    "event": "event",
    "user": "userId",
    "anonymous": "anonymousId",
    "session": "sessionId",
    "timestamp": "timestamp",
    "id": "messageId",
}


class Wanted(Struct, frozen=True, kw_only=True):
    """What the flags say: a column's name, `ABSENT`, or None to recognise it.

    ``properties`` lists the columns that become properties; None takes all that are left over.
    """

    event: str | None = None
    user: str | None = None
    anonymous: str | None = None
    session: str | None = None
    timestamp: str | None = None
    id: str | None = None
    properties: tuple[str, ...] | None = None


class Mapping(Struct, frozen=True, kw_only=True):
    """The column of each field, None where the file has none."""

    event: str
    user: str | None = None
    anonymous: str | None = None
    session: str | None = None
    timestamp: str | None = None
    id: str | None = None
    properties: tuple[str, ...] | None = None
    timezone: str = "UTC"
    source: str = ""

    def fields(self) -> dict[str, str]:
        """Wire field -> column, for the fields that have one, without the properties."""
        return {wire: column for field, wire in _WIRE.items() if (column := getattr(self, field)) is not None}

    def properties_of(self, columns: Sequence[str]) -> list[str]:
        """The columns, of those that are there, that become properties. ``context`` is a field of its own."""
        if self.properties is not None:
            return [name for name in columns if name in self.properties]
        taken = {*self.fields().values(), "context"}
        return [name for name in columns if name not in taken]


def resolve(columns: Sequence[str], wanted: Wanted, *, where: str, timezone: str = "UTC", source: str = "") -> Mapping:
    """Decide the mapping for a file ``where`` with these ``columns``.

    :raises ConfigError: when a named column is not there, two fields claim one column, or a required field is not
        recognised; it names the columns that are there.
    """
    present = list(columns)
    for name in wanted.properties or ():
        if name not in present:
            raise ConfigError(where, f"--properties: there is no column {name!r}{near(name, present)}")
    told = {field: getattr(wanted, field) for field in _NAMES}
    found: dict[Field, str | None] = {}
    for field, name in told.items():
        if name is not None and name != ABSENT and name not in present:
            raise ConfigError(where, f"--{field}-column: there is no column {name!r}{near(name, present)}")
        if name is not None:
            found[field] = None if name == ABSENT else name
    _refuse_twice(found, where)
    for field in _NAMES:
        if field not in found:
            found[field] = _recognise(field, present, set(found.values()))
    for field in _REQUIRED:
        if found[field] is None and (field == "event" or told[field] != ABSENT):
            raise ConfigError(where, _unrecognised(field, present))
    return Mapping(**found, properties=wanted.properties, timezone=timezone, source=source)  # type: ignore[arg-type]


def _recognise(field: Field, present: list[str], taken: set[str | None]) -> str | None:
    plain = {_plain(name): name for name in reversed(present) if name not in taken}
    return next((plain[name] for name in _NAMES[field] if name in plain), None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _refuse_twice(found: dict[Field, str | None], where: str) -> None:
    owners: dict[str, Field] = {}
    for field, name in found.items():
        if name is None:
            continue
        if name in owners:
            raise ConfigError(where, f"column {name!r} is named by both --{owners[name]}-column and --{field}-column")
        owners[name] = field


def _unrecognised(field: Field, present: list[str]) -> str:
    unnamed = f" (or --{field}-column {ABSENT} to stamp every row with the time of the import)"
    return (
        f"cannot tell which column holds the {field}; name it with --{field}-column"
        f"{unnamed if field == 'timestamp' else ''}. The columns are: {', '.join(present)}"
    )


def difference(old: Mapping, new: Mapping) -> str:
    """What differs between two mappings in words, empty when nothing does."""
    before, after = asdict(old), asdict(new)
    return ", ".join(
        f"{key} was {before[key]!r} and is now {after[key]!r}" for key in before if before[key] != after[key]
    )
