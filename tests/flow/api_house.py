"""The API over a real socket, real `Live` and real bus, with small stand-ins for the services behind it."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pyarrow as pa
from aiohttp import web

from analytics_core import api
from analytics_core.bus.memory import MemoryBus
from analytics_core.config import ApiKey, Auth, Settings
from analytics_core.erasure.receipts import ErasureReceipt, Found, Place
from analytics_core.errors import HookFailedError, NotFoundError
from analytics_core.events import Event
from analytics_core.host.caretaker import Taken
from analytics_core.host.examining.examination import Examination
from analytics_core.host.examining.explanation import Explanation
from analytics_core.host.examining.inspection import Inspection
from analytics_core.host.life.change import ReloadReceipt
from analytics_core.host.reloader import ManifestsView
from analytics_core.host.replaying.view import ReplayState, ReplayView
from analytics_core.lanes import LaneView
from analytics_core.lanes.maintenance import HeldRetention
from analytics_core.live import Live
from analytics_core.manifest import Deployment, TenantManifest
from analytics_core.manifest.switching import Switched
from analytics_core.queries.cohort_sizes import Asked
from analytics_core.queries.declarations import Declared
from analytics_core.queries.export_formats import Format
from analytics_core.queries.identity.merging import Person
from analytics_core.queries.identity.persons import Merge
from analytics_core.queries.insights import Wanted
from analytics_core.records import Message, Outcome, Reply, Request
from analytics_core.state.side import Difference

KEYS = (
    ApiKey("acme-writer", "acme", "writer"),
    ApiKey("acme-reader", "acme", "reader"),
    ApiKey("acme-operator", "acme", "operator"),
    ApiKey("other-operator", "other", "operator"),
)
DEPLOYMENT = Deployment(tenants={"acme": TenantManifest(name="acme", timezone="Europe/Berlin")})
AUTH = Auth(enabled=True, keys=KEYS, jwt_secret="a secret of the tests, long enough for HS256")


@dataclass
class StandIns:
    """The services behind the API: they remember what they were asked, and hold one thing for each tenant."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    fail: Exception | None = None
    requests: int = 2
    seconds: float = 0.004
    rejected: list[dict[str, Any]] = field(default_factory=list)
    state: str = "active"
    errors: int = 0
    lane_state: str = "running"
    room: list[int] = field(default_factory=list)
    """Bytes that are held in the queue, one entry for each body."""
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    held: list[HeldRetention] = field(default_factory=list)
    confirmed: int = 0
    manifests: ManifestsView = field(default_factory=ManifestsView)
    guard: Any = field(default_factory=lambda: SimpleNamespace(safe_mode=None))

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.fail is not None:
            raise self.fail

    # intake

    @contextmanager
    def room_for(self, size: int) -> Iterator[None]:
        self.room.append(size)
        self.taken.set()
        try:
            yield
        finally:
            self.room.remove(size)

    async def accept(self, body: bytes, **given: Any) -> Outcome:
        self._ask("accept", body, given)
        return Outcome(accepted=1, deduplicated="messageId", seq=7)

    async def accept_events(self, events: Sequence[Event], **given: Any) -> Outcome:
        self._ask("accept_events", events, given)
        return Outcome(accepted=len(events), seq=9)

    # host

    def views(self) -> list[Any]:
        return [
            SimpleView(
                name="user-behavior",
                version="1.0",
                state=self.state,
                reason="a row of globex",
                since="2025-01-01T00:00:00Z",
                generation=1,
                isolation="thread",
                lag=0,
                events_processed=3,
                hooks=["process"],
                errors=self.errors,
            )
        ]

    def lanes(self) -> list[LaneView]:
        return [LaneView("store", self.lane_state, 5, 2, 5, "a row of globex")]

    def reload(self, name: str) -> ReloadReceipt:
        self._ask("reload", name)
        return self.receipts(name)[0]

    def receipts(self, name: str) -> list[ReloadReceipt]:
        at = datetime(2025, 1, 1, tzinfo=UTC)
        return [ReloadReceipt(name, 1, 2, "active", "", at, {"load": 0.01}, 0.002, 7)]

    # caretaker

    def why(self, name: str) -> Explanation:
        return Explanation(name=name, runs=True, state=self.state, reason="", source="host")

    def inspect(self, name: str) -> tuple[Inspection, Any]:
        places = dict.fromkeys(("distribution", "package", "directory", "manifest_file"), "")
        return Inspection(name=name, version="1.0", state=self.state, reason="", **places), self.views()[0]

    def switch(self, name: str, enabled: bool, *, by: str, reason: str = "") -> Taken:
        self._ask("switch", name, enabled, by, reason)
        return Taken(Switched(name, enabled, True, "plugins.yaml"), self.views()[0], "")

    def examine(self, names: Sequence[str], seconds: float) -> list[Examination]:
        self._ask("examine", names, seconds)
        return [Examination(plugin="user-behavior")]

    # foreign protocols

    @property
    def calls(self) -> StandIns:
        return self

    def route(self, method: str, path: str) -> str | None:
        return "foreign" if (method, path) == ("POST", "/foreign/track") else None

    async def ingest(self, plugin: str, request: Request) -> list[Event]:
        self._ask("ingest", plugin, request)
        if request.body == b"broken":
            raise HookFailedError(plugin, "ingest", "ValueError: no comma") from ValueError("no comma")
        return [Event.of(name) for name in request.body.decode().split(",")]

    async def reply(self, plugin: str, request: Request, outcome: Outcome) -> Reply:
        text = outcome.overloaded or f"{outcome.accepted} taken, {len(outcome.rejected)} refused"
        return Reply(503 if outcome.overloaded else 200, text.encode(), {"X-Foreign": plugin})

    # queries

    async def query(self, tenant: str, *given: Any) -> dict[str, Any]:
        self._ask("metrics", tenant, *given)
        point = {"timestamp": "2025-01-01T00:00:00+00:00", "value": 1.0}
        series = [{"metric": f"{tenant}.{name}", "value": 1.0, "points": [point]} for name in given[0]]
        return {"metrics": series, "watermark": None}

    def catalogue(self, tenant: str, timezone: str) -> list[dict[str, Any]]:
        return [{"name": "funnel", "plugin": "user-behavior", "title": tenant, "schema": {"default": timezone}}]

    async def ask(self, name: str, parameters: dict[str, Any], tenant: str, timezone: str) -> dict[str, Any]:
        self._ask("analysis", name, parameters, tenant, timezone)
        if name != "funnel":
            raise NotFoundError("analysis", name, ["funnel"])
        return {"analysis": name, "rows": [{"tenant": tenant}]}

    async def find(self, wanted: Wanted, tenant: str, timezone: str) -> dict[str, Any]:
        self._ask("insights", wanted, tenant, timezone)
        found = {"insights": [{"tenant": tenant}], "recommendations": [], "analyses": []}
        span = {"start": "2025-01-01T00:00:00+00:00", "end": "2025-01-08T00:00:00+00:00"}
        told = {"dataSource": wanted.data_source, "timeRange": span, "analysisType": wanted.analysis_type}
        return {**told, **found, "data_as_of": None, "watermark": None}

    async def submit(self, type_: str, data: dict[str, Any], tenant: str) -> str:
        self._ask("submit", type_, data, tenant)
        return f"{tenant}-1"

    def result(self, id_: str, tenant: str) -> dict[str, Any] | None:
        return {"success": True, "status": "done"} if id_ == f"{tenant}-1" else None

    def page(self, tenant: str, **given: Any) -> dict[str, Any]:
        self._ask("page", tenant, given)
        return {"rows": [{"event": "x", "tenant": tenant}], "next_cursor": None, "watermark": None, "notes": []}

    def export(self, tenant: str, *given: Any) -> StandInExport:
        self._ask("export", tenant, *given)
        return StandInExport(given[-1])

    def records(self, tenant: str, kind: str, **given: Any) -> list[dict[str, Any]]:
        self._ask("records", tenant, kind, given)
        return [{"key": "k", "tenant": tenant, "seq": 4}]

    def lines(self, tenant: str, user: str) -> Iterator[bytes]:
        self._ask("export", tenant, user)
        if user == "nobody":
            raise NotFoundError("user", user)
        yield b'{"user":"%s"}\n' % user.encode()
        yield b'{"event":"a"}\n{"event":"b"}\n'

    def reader(self, tenant: str) -> Any:
        table = pa.table({"n": [len(tenant)]})
        return NullReader(table)

    def latest(self, tenant: str) -> dict[str, dict[str, Any]]:
        return {"page_views": {"value": float(len(tenant)), "window": None}}

    # maintenance

    def confirm_retention(self) -> None:
        self.confirmed += 1
        self.held.clear()

    def figures(self) -> dict[str, int | float]:
        return {"intake_accepted": 7, "dedup_reached": 5, "commit_seconds": 0.25}


@dataclass
class StandInExport:
    """One event as a whole export."""

    format: Format
    rows: int = 1

    def chunks(self) -> Iterator[bytes]:
        yield b'{"event":"x"}\n'

    def close(self) -> None:
        pass


class StandInErasures:
    """The erasures behind the API: ``acme-1`` is one of ``acme``, and nobody has an event of ``nobody``."""

    def __init__(self, behind: StandIns) -> None:
        self._behind = behind

    def look(self, tenant: str, ids: Sequence[str]) -> Found:
        self._behind._ask("look", tenant, ids)
        return Found(ids, 0 if "nobody" in ids else 3)

    def begin(self, tenant: str, ids: Sequence[str], by: str) -> ErasureReceipt:
        self._behind._ask("erase", tenant, ids, by)
        return msgspec.structs.replace(self.view("acme", "acme-1"), events=self.look(tenant, ids).events)

    def view(self, tenant: str, id_: str) -> ErasureReceipt:
        if (tenant, id_) != ("acme", "acme-1"):
            raise NotFoundError("erasure", id_)
        at = datetime(2025, 1, 1, tzinfo=UTC)
        places = [Place(place="lake")]
        return ErasureReceipt(
            id="acme-1",
            tenant=tenant,
            state="running",
            ids=["ff"],
            by="x",
            asked_at=at,
            position=4,
            events=3,
            places=places,
        )

    def drop_state(self, tenant: str, id_: str, plugin: str, by: str) -> ErasureReceipt:
        self._behind._ask("drop state", tenant, id_, plugin, by)
        return self.view(tenant, id_)

    def all(self, tenant: str) -> list[ErasureReceipt]:
        return [self.view(tenant, "acme-1")] if tenant == "acme" else []


class StandInCohorts:
    """The cohorts behind the API: one that is always there."""

    def __init__(self, behind: StandIns) -> None:
        self._behind = behind

    async def all(self, asked: Asked) -> dict[str, Any]:
        cohort = {"name": asked.tenant, "title": "", "definition": {"all": []}, **self._size("cohorts", asked)}
        beside = {key: cohort.pop(key) for key in ("timeRange", "timezone", "data_as_of", "watermark", "notes")}
        return {"cohorts": [cohort], "note": None, **beside}

    async def one(self, name: str, asked: Asked) -> dict[str, Any]:
        return {"name": name, "title": "", "definition": {"all": []}, **self._size("cohort", name, asked)}

    async def preview(self, definition: dict[str, Any], asked: Asked) -> dict[str, Any]:
        return self._size("preview", definition, asked)

    def _size(self, *what: Any) -> dict[str, Any]:
        self._behind._ask(*what)
        beside = {
            "timeRange": {"start": "", "end": ""},
            "timezone": "",
            "data_as_of": None,
            "watermark": None,
            "notes": [],
        }
        return {"people": 2, "active": 1, "share": 0.5, **beside}


class StandInMerging:
    """Who is who behind the API: one merge that is always there."""

    def __init__(self, behind: StandIns) -> None:
        self._behind = behind

    async def merge(self, tenant: str, former: str, into: str, *, force: bool = False) -> Merge:
        return self._merge("merge", tenant, former, into, force)

    async def undo(self, tenant: str, id: int) -> Merge:  # noqa: A002
        return self._merge("undo", tenant, id)

    def person(self, tenant: str, id: str) -> Person:  # noqa: A002
        return Person(id, [id], 1, None, None, [self._merge("person", tenant, id)])

    def merges(self, tenant: str, **asked: Any) -> list[Merge]:
        return [self._merge("merges", tenant, asked)]

    def _merge(self, *what: Any) -> Merge:
        self._behind._ask(*what)
        at = datetime(2025, 1, 1, tzinfo=UTC)
        return Merge(id=1, former="a", into="b", at=at, kind="alias", state="active")


class StandInReplays:
    """The replays behind the API: one of ``user-behavior`` that is always there."""

    def __init__(self, behind: StandIns) -> None:
        self._behind = behind

    def begin(self, plugin: str, since: datetime | None) -> ReplayView:
        self._behind._ask("begin", plugin, since)
        return self.view(plugin, "acme-1")

    def of(self, plugin: str) -> list[ReplayView]:
        return [self.view(plugin, "acme-1")]

    def view(self, plugin: str, id_: str, state: ReplayState = "ready") -> ReplayView:
        if id_ != "acme-1":
            raise NotFoundError(f"replay of {plugin!r}", id_, ["acme-1"])
        return ReplayView(
            id=id_,
            plugin=plugin,
            state=state,
            reason="",
            generation=2,
            since=None,
            kept_from=datetime(2025, 1, 1, tzinfo=UTC),
            started_at=datetime(2025, 1, 2, tzinfo=UTC),
            events=7,
            position=9,
            progress=1.0,
            difference=Difference(position=9, equal=True, counts=[], sample=[]),
        )

    def switch(self, plugin: str, id_: str) -> ReplayView:
        self._behind._ask("switch to", plugin, id_)
        return self.view(plugin, id_, "switched")

    def discard(self, plugin: str, id_: str) -> ReplayView:
        self._behind._ask("discard", plugin, id_)
        return self.view(plugin, id_, "discarded")


class SimpleView(msgspec.Struct):
    name: str
    version: str
    state: str
    reason: str
    since: str
    generation: int
    isolation: str
    lag: int
    events_processed: int
    hooks: list[str]
    errors: int


class NullReader:
    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __enter__(self) -> NullReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sql(self, query: str) -> pa.Table:
        return self._table


@dataclass
class House:
    url: str
    http: aiohttp.ClientSession
    bus: MemoryBus
    live: Live
    behind: StandIns
    app: web.Application
    server: web.Server

    def publish(self, topic: Any, tenant: str, body: dict[str, Any], id_: str = "m") -> None:
        self.bus.publish(Message(id=id_, topic=topic, tenant=tenant, body=msgspec.json.encode(body)))

    async def ask(self, method: str, path: str, key: str | None = None, **given: Any) -> SimpleNamespace:
        """Status, headers and decoded body of one request."""
        headers = {**({"X-API-Key": key} if key else {}), **given.pop("headers", {})}
        async with self.http.request(method, self.url + path, headers=headers, **given) as response:
            raw = await response.read()
            body = msgspec.json.decode(raw) if response.content_type.endswith(("/json", "+json")) else raw
            return SimpleNamespace(status=response.status, headers=response.headers, body=body)


@asynccontextmanager
async def opened(
    settings: Settings = Settings(),  # noqa: B008
    *,
    read_buffer: int | None = None,
    caretaker: Callable[[StandIns], Any] = lambda behind: behind,
    merging: Any = None,
) -> AsyncIterator[House]:
    """``read_buffer`` makes the server's socket buffers small, so that a client that does not read is noticed."""
    behind, bus = StandIns(), MemoryBus(asyncio.get_running_loop())
    live = Live(bus, max_connections=settings.live.max_connections, queue_messages=settings.live.queue_messages)
    services = api.Services(
        settings=settings,
        declarations=SimpleNamespace(now=Declared(DEPLOYMENT, behind, {})),
        manifests=lambda: behind.manifests,
        intake=behind,
        host=behind,
        caretaker=caretaker(behind),
        replays=StandInReplays(behind),
        lanes=behind.lanes,
        history=behind,
        analyses=behind,
        insights=behind,
        cohorts=StandInCohorts(behind),
        merging=merging or StandInMerging(behind),
        submissions=behind,
        state=behind,
        live=live,
        live_metrics=behind,
        maintenance=behind,
        erasures=StandInErasures(behind),
        user_exports=behind,
        figures=behind.figures,
        started_at=datetime.now(UTC),
    )
    app = api.build(services)
    runner = api.runner(app)
    await runner.setup()
    listener = sockets.socket()
    if read_buffer is not None:
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, read_buffer)
    listener.bind(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()
    async with aiohttp.ClientSession() as http:
        assert runner.server is not None
        yield House(f"http://{host}:{port}", http, bus, live, behind, app, runner.server)
    await runner.cleanup()
    await bus.close()
