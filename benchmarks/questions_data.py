"""A month of a product's events in a lake of its own, made hour by hour: the memory is that of one commit.

The clickstream: visitors whose activity follows a power law, a daily cycle, visits that walk through twenty event names
by fixed chances, half of the users with the client's session ids, some of them anonymous until they sign up.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from analytics_core.events import SCHEMA, micros
from analytics_core.lake.delta import DeltaStore
from analytics_core.log.reading import DURABLE
from analytics_core.log.segments import partition_directory
from analytics_core.state import Checkpoint
from analytics_core.state.sqlite import SqliteState

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

DAYS = 30
NAMES = (
    *("page_view", "api_call", "search", "product_view", "scroll", "click", "add_to_cart", "cart", "checkout"),
    *("purchase", "login", "logout", "signup", "share", "review", "wishlist", "filter", "video_play", "support_chat"),
    "error",
)
WEIGHTS = np.array([22, 18, 8, 12, 9, 9, 4, 3, 2, 1.2, 2, 1, 0.5, 0.8, 0.6, 1.2, 2.5, 1, 0.4, 0.8])
NEXT = {"product_view": ("add_to_cart", 0.12), "add_to_cart": ("cart", 0.4), "cart": ("checkout", 0.35)}
NEXT["checkout"] = ("purchase", 0.45)
"""After the one name the other comes with this chance, else one by its weight."""
PLANS = ("free", "basic", "pro", "enterprise")
COUNTRIES = tuple(f"{a}{b}" for a in "ABCDEF" for b in "AEIOU")  # thirty made-up codes, the first most frequent
_HOURS = 1.0 + 0.75 * np.sin((np.arange(24) - 9) / 24 * 2 * np.pi)
_MEAN_EVENTS, _MOST_EVENTS = 10.0, 60
_USERS_PER_EVENT = 1 / 100
_COMMIT_BYTES = 64 << 20
_MICROS = 1_000_000
_HOUR = 3_600 * _MICROS
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint16)
_SEED = 20250301


class Month(Struct, frozen=True):
    """A lake that is ready: how many events, and the 30 days (UTC) in which they are."""

    folder: Path
    events: int
    users: int
    start: datetime

    @property
    def end(self) -> datetime:
        return self.start + timedelta(days=DAYS)

    @property
    def data(self) -> Path:
        """The data directory for a server."""
        return self.folder / "data"

    @property
    def lake(self) -> Path:
        return self.data / "lake" / "events"

    def copy(self, folder: Path) -> Month:
        """The same month beside it, for a run that adds to it. Parquet files are shared: nobody changes one."""
        shutil.copytree(self.lake, folder / "data" / "lake" / "events", copy_function=_link)
        shutil.copytree(self.data, folder / "data", ignore=shutil.ignore_patterns("lake", "lock"), dirs_exist_ok=True)
        return Month(folder, self.events, self.users, self.start)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source) if source.endswith(".parquet") else shutil.copy2(source, target)
    return target


def month(root: Path, events: int) -> Month:
    """The month of ``events`` events below ``root``: that of an earlier run, or made now. It ends with yesterday."""
    folder = root / f"questions-{events}"
    ready = folder / "month.json"
    if ready.exists():
        start = msgspec.json.decode(ready.read_bytes(), type=datetime)
        return Month(folder, events, _users(events), start)
    shutil.rmtree(folder, ignore_errors=True)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    made = Month(folder, events, _users(events), today - timedelta(days=DAYS))
    _fill(made)
    ready.write_bytes(msgspec.json.encode(made.start))
    return made


def _users(events: int) -> int:
    return max(1, round(events * _USERS_PER_EVENT))


def _fill(made: Month) -> None:
    """Into the lake as the store writer would, then sorted as maintenance does."""
    store = DeltaStore(made.lake, young_seconds=0)
    try:
        pieces: list[pa.Table] = []
        position = size = 0
        for piece in _pieces(made):
            pieces.append(piece)
            position, size = position + len(piece), size + piece.nbytes
            if size >= _COMMIT_BYTES or position == made.events:
                store.append(pa.concat_tables(pieces).unify_dictionaries().combine_chunks(), position)
                pieces, size = [], 0
        store.compact()
        store.vacuum()
    finally:
        store.close()
    _go_on_at(made.data, position)


def _go_on_at(data: Path, position: int) -> None:
    """The log begins where the lake ends, and so does the plugin's lane: its live metrics are not asked here."""
    log = partition_directory(data)
    log.mkdir(parents=True)
    (log / DURABLE).write_bytes(position.to_bytes(8, "little"))
    state = SqliteState(data / "state.db")
    try:
        lane = state.claim("user-behavior")
        state.commit(Checkpoint(lane=lane.lane, epoch=lane.epoch, position=position))
    finally:
        state.close()


# --- the clickstream -------------------------------------------------------------------------------------------------


class Clicks(NamedTuple):
    """Events as numbers, each of shape ``(n,)``: microseconds, user, number of the visit, index into `NAMES`."""

    at: I64
    user: I64
    visit: I64
    name: I64

    def take(self, which: npt.NDArray[np.bool_] | I64) -> Clicks:
        return Clicks._make(column[which] for column in self)


def _pieces(made: Month) -> Iterator[pa.Table]:
    """The events of each hour, exactly ``made.events`` in all, in order of receipt."""
    draw = np.random.default_rng(_SEED)
    activity = np.cumsum(1.0 / (np.arange(made.users) + 0.02 * made.users + 1) ** 0.9)
    shares = np.tile(_HOURS, DAYS) / (_HOURS.sum() * DAYS)
    begin, left = micros(made.start), made.events
    waiting = Clicks(*(np.zeros(0, np.int64) for _ in Clicks._fields))
    visits = 0
    for hour, share in enumerate(shares):
        last = hour == len(shares) - 1
        expected = (left - len(waiting.at)) * share / shares[hour:].sum()
        count = draw.poisson(max(1.0, expected / _MEAN_EVENTS))
        low, high = begin + hour * _HOUR, begin + (hour + 1) * _HOUR
        fresh = _visits(draw, count, low, activity, visits)
        visits += count
        held = Clicks._make(np.concatenate(pair) for pair in zip(waiting, fresh, strict=True))
        due = held.at < high
        waiting, now = held.take(~due), held.take(due)
        now = _fitted(draw, now, left, last, high)
        left -= len(now.at)
        if len(now.at):
            yield _table(draw, now, made, made.events - left - len(now.at))


def _fitted(draw: np.random.Generator, now: Clicks, left: int, last: bool, high: int) -> Clicks:
    """No more than are left; in the last hour all of those, some of them repeated a moment later."""
    if len(now.at) > left:
        return now.take(np.arange(left))
    if last and len(now.at) < left:
        again = now.take(draw.integers(0, len(now.at), left - len(now.at)))
        again = again._replace(at=np.minimum(again.at + draw.integers(1, 1000, len(again.at)) * 1000, high - 1))
        return Clicks._make(np.concatenate(pair) for pair in zip(now, again, strict=True))
    return now


def _visits(draw: np.random.Generator, count: int, low: int, activity: F64, first_visit: int) -> Clicks:
    """``count`` visits that begin in the hour at ``low``, some of whose events may come after it."""
    user = np.searchsorted(activity, draw.random(count) * activity[-1])
    length = np.minimum(draw.geometric(1 / _MEAN_EVENTS, count), _MOST_EVENTS)
    at = low + draw.integers(0, _HOUR // 1000, count) * 1000
    name = draw.choice(len(NAMES), count, p=WEIGHTS / WEIGHTS.sum())
    number = first_visit + np.arange(count)
    steps = []
    cdf = np.cumsum(WEIGHTS / WEIGHTS.sum())
    successor, chance = _successors()
    alive = np.arange(count)
    for step in range(1, _MOST_EVENTS + 1):
        steps.append(Clicks(at[alive], user[alive], number[alive], name[alive]))
        alive = alive[length[alive] > step]
        pause = np.minimum(draw.lognormal(2.9, 1.3, len(alive)), 1_500.0) * (draw.random(len(alive)) > 0.02)
        at[alive] += (pause * 1000).astype(np.int64) * 1000
        follows = draw.random(len(alive)) < chance[name[alive]]
        drawn = np.minimum(np.searchsorted(cdf, draw.random(len(alive))), len(NAMES) - 1)
        name[alive] = np.where(follows, successor[name[alive]], drawn)
    return Clicks._make(np.concatenate(columns) for columns in zip(*steps, strict=True))


def _successors() -> tuple[I64, F64]:
    successor, chance = np.zeros(len(NAMES), np.int64), np.zeros(len(NAMES))
    for name, (after, share) in NEXT.items():
        successor[NAMES.index(name)], chance[NAMES.index(name)] = NAMES.index(after), share
    return successor, chance


# --- as columns ------------------------------------------------------------------------------------------------------


def _table(draw: np.random.Generator, clicks: Clicks, made: Month, first: int) -> pa.Table:
    """The events in order of receipt, with positions from ``first``. Which event is late is chance, and small."""
    received = clicks.at + (draw.exponential(300, len(clicks.at)).astype(np.int64) + 20) * 1000
    order = np.argsort(received, kind="stable")
    clicks, received, n = clicks.take(order), received[order], len(order)
    known, anonymous = _identities(clicks, made)
    columns = {
        "partition": pa.array(np.zeros(n, np.int16)),
        "seq": pa.array(np.arange(first, first + n)),
        "tenant": _words(np.zeros(n, np.int64), ["default"]),
        "event_id": _ids(draw, n),
        "name": _words(clicks.name, NAMES),
        "user_id": _numbered("u", clicks.user, known),
        "anonymous_id": _numbered("a", clicks.user, anonymous),
        "session_id": _numbered("s", clicks.visit, clicks.user % 2 == 0),
        "timestamp": pa.array(clicks.at).cast(SCHEMA.field("timestamp").type),
        "received_at": pa.array(received).cast(SCHEMA.field("received_at").type),
        "source": _words(np.zeros(n, np.int64), ["native"]),
        "properties": _properties(draw, clicks),
        "context": pa.repeat("{}", n),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _identities(clicks: Clicks, made: Month) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Every fifth user has an anonymous id alone until a moment of his own, and a user id alone from then on."""
    signs_up = micros(made.start) + (clicks.user * 2_654_435_761 % (DAYS * 24)) * _HOUR
    anonymous = (clicks.user % 5 == 1) & (clicks.at < signs_up)
    return ~anonymous, anonymous


def _words(codes: I64, words: tuple[str, ...] | list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(words))


def _numbered(letter: str, numbers: I64, present: npt.NDArray[np.bool_]) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers, mask=~present).cast(pa.string()), "")


def _ids(draw: np.random.Generator, n: int) -> pa.Array:
    """Random ids of 32 hexadecimal digits."""
    digits = _HEX[draw.integers(0, 256, (n, 16))]
    offsets = np.arange(n + 1, dtype=np.int32) * 32
    return pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(offsets), pa.py_buffer(digits.tobytes())])


def _properties(draw: np.random.Generator, clicks: Clicks) -> pa.Array:
    """JSON text: plan and country of the user, and what belongs to the name."""
    every = [f'{{"plan":"{plan}","country":"{country}"' for plan in PLANS for country in COUNTRIES]
    person = clicks.user * 40_503 % 65_521
    plan = np.searchsorted([0.6, 0.85, 0.97], (person % 1000) / 1000, side="right")
    country = np.minimum((person % 977 / 977) ** 2 * len(COUNTRIES), len(COUNTRIES) - 1).astype(np.int64)
    head = pa.array(every).take(pa.array(plan * len(COUNTRIES) + country))
    tail = pa.repeat("}", len(head))
    for name, key, values in (
        ("purchase", "amount", lambda n: np.round(draw.lognormal(3.5, 0.8, n), 2)),
        ("api_call", "duration_ms", lambda n: np.round(draw.lognormal(4.6, 0.9, n), 1)),
        ("product_view", "product", lambda n: draw.zipf(1.3, n) % 5000),
    ):
        mask = clicks.name == NAMES.index(name)
        text = pa.array(values(int(mask.sum()))).cast(pa.string())
        tail = pc.replace_with_mask(tail, pa.array(mask), pc.binary_join_element_wise(f',"{key}":', text, "}", ""))
    return pc.binary_join_element_wise(head, tail, "")
