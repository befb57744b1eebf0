"""No tenant sees another: over a real server with keys, every operation of the OpenAPI document, sockets and streams.

Everything that the tenant acme owns carries the word of `SECRET`. What globex is answered must never hold it, and what
acme is answered must, so that the test can fail. An operation that is in the document and not in `CASES` fails.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest

from tests.flow.server_house import EVENTS, Answer, ServerHouse, house, socket_of, stream_of, until

pytestmark = pytest.mark.server

SECRET = "zq7acmesecret"
TOKEN_SECRET = "a secret of the tests, long enough for HS256"
KEYS = {
    "acme": {"reader": "acme-reading", "writer": "acme-writing", "operator": "acme-operating"},
    "globex": {"reader": "globex-reading", "writer": "globex-writing", "operator": "globex-operating"},
}
ACME, GLOBEX = KEYS["acme"]["writer"], KEYS["globex"]["writer"]
ENVIRON = {
    "API_KEY_ENABLED": "true",
    "API_KEYS": ",".join(f"{tenant}/{role}:{key}" for tenant, roles in KEYS.items() for role, key in roles.items()),
    "JWT_SECRET": TOKEN_SECRET,
}
FINDER = """
@hookimpl
def process(self, batch):
    rows = batch.rows()
    if not rows:
        return None
    return ProcessResult(
        [Metric(name=f"found_{rows[0].name}", value=1, window=Window(DAY, 86400))],
        [Pattern(key=r.name, name=r.name, description=r.name, count=1) for r in rows],
        [Insight(key=r.name, title=r.name, description=r.name) for r in rows],
    )

@hookimpl
def insight(self, question, events):
    return Answer(events.sql("SELECT name, user_id, properties FROM events"))

@hookimpl
def ingest(self, request):
    return [Event.of(request.body.decode())]

@hookimpl
def reply(self, request, outcome):
    return Reply(200, f"{request.tenant} {sorted(request.headers)}".encode())
"""
PROVIDES = {"routes": ["POST /found"], "analyses": [{"name": "everything"}]}
EVENT_NAME = f"bought_{SECRET}"


def owned(tenant: str) -> dict[str, Any]:
    """The one event that each tenant has: the same ids and times, and acme's secret everywhere else."""
    word = SECRET if tenant == "acme" else "plain"
    return {
        "event": f"bought_{word}",
        "messageId": "the same id",
        "userId": word,
        "anonymousId": word,
        "sessionId": word,
        "properties": {"word": word, "duration": 7, "code": word},
        "context": {"word": word},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHouse]:
    with house(
        tmp_path_factory.mktemp("tenants"), host={"lanes": {"checkpoint_seconds": 0.1}}, environ=ENVIRON
    ) as made:
        made.install(
            "finder",
            FINDER,
            ("process", "insight", "ingest", "reply"),
            head="from analytics_core.events import Event",
            provides=PROVIDES,
        )
        yield made.start()


@pytest.fixture(scope="module")
def acme(server: ServerHouse) -> dict[str, str]:
    """What only acme may use, a cursor and an analysis; it has stored its events, and plugins have made something of
    them. globex has one event of the same id."""
    linked = {"event": "identify", "userId": SECRET, "anonymousId": f"visitor {SECRET}"}
    assert server.post([owned("acme"), {"event": "second", "userId": SECRET}, linked], key=ACME)["accepted"] == 3
    assert server.post(owned("globex"), key=GLOBEX)["accepted"] == 1  # the same messageId is another event
    sessions = [{"sessionId": SECRET, "userId": SECRET, "events": [{"type": EVENT_NAME, "timestamp": "2025-01-01"}]}]
    asked = {"type": "user-behavior", "data": {"sessions": sessions}}
    submitted = server.ask("POST", "/api/analytics/submit", asked, key=ACME)
    assert submitted.status == 202
    id_ = submitted.body["analysisId"]
    path = f"/api/analytics/result/{id_}"
    until(lambda: server.get(path, ACME)["status"] == "done", "the analysis of acme")
    cursor = server.query(ACME, limit=1)["nextCursor"]
    until(lambda: server.query(ACME, records="insights")["data"], "the insights of acme")
    until(lambda: EVENT_NAME in server.get("/api/analytics/metrics", ACME)["latest"], "live metrics of acme")
    until(lambda: server.query(GLOBEX, records="insights")["data"], "the insights of globex")
    return {"analysis": id_, "cursor": cursor}


Ask = Callable[..., Answer]
Case = Callable[[Ask, dict[str, str]], list[Answer]]
"""Asks everything of one operation as one tenant: (the request function, what only acme may use) -> its answers."""


def post_events(ask: Ask, _: dict[str, str]) -> list[Answer]:
    return [
        ask("POST", EVENTS, {"event": "posted", "messageId": "posted by both"}),
        ask("POST", EVENTS, {"event": "keyed"}, headers={"Idempotency-Key": "the same key"}),
    ]


def metrics(ask: Ask, _: dict[str, str]) -> list[Answer]:
    asked = ("active_users&breakdown=properties.word", "performance.requests&breakdown=event", EVENT_NAME[:-1])
    return [ask("GET", f"/api/v1/metrics?metrics={question}") for question in asked]


def analysis(ask: Ask, _: dict[str, str]) -> list[Answer]:
    return [
        ask("POST", "/api/v1/analyses/everything", {}),
        ask("POST", "/api/v1/analyses/funnel", {"steps": [{"event": "second"}, {"event": "second"}]}),
        ask("POST", "/api/v1/analyses/latency", {"breakdown": "properties.word"}),
        ask("POST", "/api/v1/analyses/forecast", {"metric": "active_users"}),
        *[ask("POST", f"/api/v1/analyses/{name}", {}) for name in ("sessions", "engagement")],
    ]


def submit(ask: Ask, _: dict[str, str]) -> list[Answer]:
    data = {"events": [{"event": "handed_in"}]}
    return [ask("POST", "/api/analytics/submit", {"type": "user-behavior", "data": data})]


def result(ask: Ask, acme: dict[str, str]) -> list[Answer]:
    return [ask("GET", f"/api/analytics/result/{acme['analysis']}")]


def query(ask: Ask, acme: dict[str, str]) -> list[Answer]:
    path = "/api/analytics/query"
    return [
        ask("POST", path, {}),
        ask("POST", path, {"limit": 1, "cursor": acme["cursor"]}),
        ask("POST", path, {"type": "finder", "filters": [{"field": "userId", "op": "contains", "value": SECRET[:-1]}]}),
        ask("POST", path, {"records": "insights"}),
        ask("POST", path, {"records": "insights", "cursor": "0"}),
        ask("POST", path, {"type": "finder", "records": "patterns"}),
    ]


def get(path: str) -> Case:
    return lambda ask, _: [ask("GET", path)]


def stream(ask: Ask, _: dict[str, str]) -> list[Answer]:
    """What is refused; the stream itself has a test of its own."""
    return [ask("GET", "/api/v1/stream?stream=nothing")]


CASES: dict[str, Case] = {
    "post /api/v1/events": post_events,
    "get /api/v1/metrics": metrics,
    "get /api/v1/plugins": get("/api/v1/plugins"),
    "get /api/v1/plugins/{name}": get("/api/v1/plugins/finder"),
    "get /api/v1/plugins/{name}/why": get("/api/v1/plugins/finder/why"),
    "post /api/v1/plugins/{name}/enable": lambda ask, _: [ask("POST", "/api/v1/plugins/finder/enable")],
    "post /api/v1/plugins/{name}/disable": lambda ask, _: [ask("POST", "/api/v1/plugins/finder/disable")],
    "post /api/v1/doctor": lambda ask, _: [ask("POST", "/api/v1/doctor?plugins=finder")],
    "post /api/v1/plugins/{name}/reload": lambda ask, _: [ask("POST", "/api/v1/plugins/finder/reload")],
    "get /api/v1/plugins/{name}/reloads": get("/api/v1/plugins/finder/reloads"),
    "get /api/v1/plugins/{name}/replays": get("/api/v1/plugins/finder/replays"),
    "get /api/v1/plugins/{name}/replays/{id}": get("/api/v1/plugins/finder/replays/none"),
    "post /api/v1/plugins/{name}/replays": lambda ask, _: [ask("POST", "/api/v1/plugins/finder/replays", {})],
    "post /api/v1/plugins/{name}/replays/{id}/switch": lambda ask, _: [
        ask("POST", "/api/v1/plugins/finder/replays/none/switch")
    ],
    "delete /api/v1/plugins/{name}/replays/{id}": lambda ask, _: [ask("DELETE", "/api/v1/plugins/finder/replays/none")],
    "get /api/v1/lanes": get("/api/v1/lanes"),
    "get /api/v1/analyses": get("/api/v1/analyses"),
    "post /api/v1/analyses/{name}": analysis,
    "post /api/v1/insights": lambda ask, _: [ask("POST", "/api/v1/insights", {"timeRange": "1d"})],
    "get /api/v1/cohorts": get("/api/v1/cohorts"),
    "get /api/v1/cohorts/{name}": get("/api/v1/cohorts/viewers"),
    "post /api/v1/cohorts/preview": lambda ask, _: [
        ask("POST", "/api/v1/cohorts/preview", {"all": [{"did": {"event": "second"}}]})
    ],
    "post /api/analytics/submit": submit,
    "get /api/analytics/result/{id}": result,
    "post /api/analytics/query": query,
    "get /api/v1/events": get("/api/v1/events?limit=1000"),
    "get /api/v1/events/export": get("/api/v1/events/export?format=csv"),
    "get /api/v1/users/{id}": get("/api/v1/users/plain"),
    "get /api/v1/users/merges": get("/api/v1/users/merges"),
    "post /api/v1/users/merges": lambda ask, _: [
        ask("POST", "/api/v1/users/merges", {"from": "former", "into": "new"})
    ],
    "delete /api/v1/users/merges/{id}": lambda ask, _: [ask("DELETE", "/api/v1/users/merges/0")],
    "get /api/v1/stream": stream,
    "get /api/v1/retention": get("/api/v1/retention"),
    "post /api/v1/retention/confirm": lambda ask, _: [ask("POST", "/api/v1/retention/confirm", {})],
    "post /api/v1/users/erase": lambda ask, _: [ask("POST", "/api/v1/users/erase", {"ids": ["plain"], "dryRun": True})],
    "get /api/v1/users/erasures": get("/api/v1/users/erasures"),
    "get /api/v1/users/erasures/{id}": get("/api/v1/users/erasures/none"),
    "delete /api/v1/users/erasures/{id}/plugins/{name}": lambda ask, _: [
        ask("DELETE", "/api/v1/users/erasures/none/plugins/performance")
    ],
    "get /api/v1/users/{id}/export": get("/api/v1/users/plain/export"),
    "get /healthz": get("/healthz"),
    "get /readyz": get("/readyz"),
    "get /api/analytics/health": get("/api/analytics/health"),
    "get /api/analytics/metrics": get("/api/analytics/metrics"),
    "get /api/v1/openapi.json": get("/api/v1/openapi.json"),
    "get /": get("/"),
}
SHOWS_ACME = {
    "get /api/v1/metrics",
    "post /api/v1/analyses/{name}",
    "get /api/analytics/result/{id}",
    "post /api/analytics/query",
    "get /api/v1/events",
    "get /api/v1/events/export",
    "get /api/analytics/metrics",
    "get /api/v1/users/merges",
}
"""Operations in whose answers acme must find its own; the others say nothing of any tenant's data."""


def asker(server: ServerHouse, key: str) -> tuple[Ask, list[str]]:
    """A request function with this key, and the text of everything that it was answered."""
    texts: list[str] = []

    def ask(method: str, path: str, body: Any = None, **given: Any) -> Answer:
        assert SECRET not in f"{path} {body}", "an answer may repeat its question, which would say nothing"
        answer = server.ask(method, path, body, key=key, **given)
        texts.append(str(answer.body))
        return answer

    return ask, texts


def operations(server: ServerHouse) -> dict[str, dict[str, Any]]:
    document = server.get("/api/v1/openapi.json")
    return {f"{method} {path}": told for path, methods in document["paths"].items() for method, told in methods.items()}


def test_every_operation_has_a_case(server: ServerHouse) -> None:
    assert set(operations(server)) == set(CASES)


@pytest.mark.parametrize("operation", CASES)
def test_no_operation_crosses_tenants(server: ServerHouse, acme: dict[str, str], operation: str) -> None:
    ask, texts = asker(server, GLOBEX)
    answers = CASES[operation](ask, acme)
    assert answers
    for text in texts:
        assert SECRET not in text, f"{operation} shows globex what is acme's: {text[:2000]}"
    if operation in SHOWS_ACME:
        mine, texts = asker(server, ACME)
        CASES[operation](mine, acme)
        assert any(SECRET in text for text in texts), f"acme does not find its own in {operation}"


def test_what_is_acmes_is_not_there_for_globex(server: ServerHouse, acme: dict[str, str]) -> None:
    assert server.ask("GET", f"/api/analytics/result/{acme['analysis']}", key=GLOBEX).status == 404
    refused = server.ask("POST", "/api/analytics/query", {"limit": 1, "cursor": acme["cursor"]}, key=GLOBEX)
    assert (refused.status, refused.body["parameter"]) == (422, "cursor")
    assert server.query(ACME, limit=1, cursor=acme["cursor"])["data"]
    for name in (EVENT_NAME, f"finder.found_{EVENT_NAME}"):
        assert server.ask("GET", f"/api/v1/metrics?metrics={name}", key=GLOBEX).status == 404
        assert server.ask("GET", f"/api/v1/metrics?metrics={name}", key=ACME).status == 200
    steps = {"steps": [{"event": EVENT_NAME}, {"event": "second"}]}
    reached = {
        key: [row["users"] for row in server.ask("POST", "/api/v1/analyses/funnel", steps, key=key).body["data"]]
        for key in (ACME, GLOBEX)
    }
    assert reached == {ACME: [1, 1], GLOBEX: [0, 0]}
    (merge,) = server.get("/api/v1/users/merges", ACME)["merges"]
    assert server.ask("DELETE", f"/api/v1/users/merges/{merge['id']}", key=KEYS["globex"]["operator"]).status == 404
    assert server.ask("GET", f"/api/v1/users/{SECRET}", key=GLOBEX).status == 404
    near = server.ask("GET", f"/api/v1/metrics?metrics={EVENT_NAME[:-1]}", key=ACME)
    assert f"did you mean '{EVENT_NAME}'?" in near.body["detail"]  # suggestions are of the tenant's own names
    for key, word in ((ACME, SECRET), (GLOBEX, "plain")):
        rows = server.history(key, filters={"messageId": "the same id"})
        assert [row["userId"] for row in rows] == [word]


def test_ids_and_keys_are_counted_once_per_tenant(server: ServerHouse) -> None:
    for key in (ACME, GLOBEX):
        assert server.post({"event": "once", "messageId": "one id"}, key=key)["accepted"] == 1
        assert server.post({"event": "once"}, key=key, Idempotency_Key="one key")["accepted"] == 1
    for key in (ACME, GLOBEX):
        assert server.post({"event": "once", "messageId": "one id"}, key=key)["duplicates"] == 1
        assert server.post({"event": "once"}, key=key, Idempotency_Key="one key")["duplicates"] == 1
        assert server.total("once", key) == 2


def test_totals_are_the_tenants_own(server: ServerHouse) -> None:
    def analyzed(key: str) -> int:
        return int(server.get("/api/analytics/health", key)["metrics"]["totalAnalyzed"])

    for key in (ACME, GLOBEX):
        assert analyzed(key) == len(server.history(key))
    until(
        lambda: analyzed(KEYS["acme"]["operator"]) >= analyzed(ACME) + analyzed(GLOBEX),
        "the whole host's total for an operator",
    )
    nobody = server.get("/api/analytics/health")
    assert nobody["metrics"] is None
    assert not any(part["reason"] for part in nobody["components"].values())


def test_a_plugins_route_belongs_to_the_callers_tenant(server: ServerHouse) -> None:
    answers = {key: server.ask("POST", "/found", b"routed", key=key) for key in (ACME, GLOBEX)}
    assert [a.body.split()[0] for a in answers.values()] == [b"acme", b"globex"]
    assert not any(b"x-api-key" in a.body for a in answers.values())  # a plugin never sees the credential
    assert server.ask("POST", "/found", b"routed").status == 401
    assert server.ask("POST", "/found", b"routed", key=KEYS["acme"]["reader"]).status == 403
    assert [server.total("routed", key) for key in (ACME, GLOBEX)] == [1, 1]


# --- live


def test_no_message_crosses_tenants(server: ServerHouse, acme: dict[str, str]) -> None:
    """Both listen to everything on a socket and a stream; what each posts, each hears alone."""

    async def scenario() -> None:
        streams = "stream=metric,insight,alert,analytics"
        async with (
            socket_of(server, auth={"token": ACME}) as acme_socket,
            socket_of(server, auth={"token": GLOBEX}) as globex_socket,
            stream_of(server, streams, key=ACME) as acme_stream,
            stream_of(server, streams, key=GLOBEX) as globex_stream,
        ):
            for client in (acme_socket, globex_socket):
                wish = {"stream": ["metric", "insight", "alert", "analytics"]}
                answer = await client.call("subscribe", wish)
                assert (SECRET in str(answer["latest"])) == (client is acme_socket)
            await asyncio.to_thread(server.post, {"event": f"live_{SECRET}"}, key=ACME)
            for client in (acme_socket, acme_stream):
                await client.next("metric", lambda m: m["metric"] == f"live_{SECRET}")
                await client.next("insight:new", lambda i: i["key"] == f"live_{SECRET}")
            await asyncio.to_thread(server.post, {"event": "live_plain"}, key=GLOBEX)
            for client in (globex_socket, globex_stream):  # what comes after acme's messages has been waited for
                held = []
                while not held or held[-1][0] != "insight:new" or held[-1][2]["key"] != "live_plain":
                    held.append(await asyncio.wait_for(client.heard.get(), 15))
                assert SECRET not in str(held)

    asyncio.run(scenario())


def test_nobody_resumes_where_another_tenant_stopped(server: ServerHouse) -> None:
    async def scenario() -> None:
        async with stream_of(server, "stream=insight", key=ACME) as client:
            await asyncio.to_thread(server.post, {"event": f"first_{SECRET}"}, key=ACME)
            _, seen, _ = await client.next("insight:new", lambda i: i["key"] == f"first_{SECRET}")
            await asyncio.to_thread(server.post, {"event": f"later_{SECRET}"}, key=ACME)
            await client.next("insight:new", lambda i: i["key"] == f"later_{SECRET}")
        async with stream_of(server, "stream=insight", key=GLOBEX, last_id=seen) as client:
            assert "no longer knows this id" in (await client.next("gap"))[2]["reason"]
            await asyncio.to_thread(server.post, {"event": "own"}, key=GLOBEX)
            event, _, insight = await asyncio.wait_for(client.heard.get(), 15)
            assert (event, insight["key"]) == ("insight:new", "own")

    asyncio.run(scenario())


def test_a_socket_hears_nothing_before_it_has_said_who_it_is_and_leaves_a_tenant_whole(server: ServerHouse) -> None:
    async def scenario() -> None:
        async with socket_of(server) as client:
            refused = await client.call("subscribe", {"stream": "insight"})
            assert (refused["ok"], "auth:authenticate" in refused["error"]) == (False, True)
            wrong = await client.call("auth:authenticate", {"token": "nobody's"})
            assert wrong == {"ok": False, "error": "the API key is not known"}
            assert (await client.call("auth:authenticate", {"token": ACME, "userId": "u"}))["tenant"] == "acme"
            assert (await client.call("subscribe", {"stream": "insight"}))["ok"]
            assert (await client.call("auth:authenticate", {"token": GLOBEX}))["tenant"] == "globex"
            await asyncio.to_thread(server.post, {"event": f"changed_{SECRET}"}, key=ACME)
            assert (await client.call("subscribe", {"stream": "insight"}))["ok"]
            await asyncio.to_thread(server.post, {"event": "changed"}, key=GLOBEX)
            _, _, insight = await asyncio.wait_for(client.heard.get(), 15)
            assert insight["key"] == "changed"

    asyncio.run(scenario())


# --- who may what


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "someone", "tenant": "acme", "role": "reader", **claims}, TOKEN_SECRET, "HS256")


def test_roles_are_enforced_on_every_operation(server: ServerHouse) -> None:
    ranks = ["reader", "writer", "operator"]
    for operation, told in operations(server).items():
        method, path = operation.split()
        path = re.sub(r"\{\w+\}", "nothing", path) + ("?stream=nothing" if path.endswith("stream") else "")
        body = {} if method == "post" else None
        role = told.get("x-role", "none")
        nobody = server.ask(method.upper(), path, body)
        assert (nobody.status == 401) == (role != "none"), operation
        if nobody.status == 401:
            assert nobody.headers["WWW-Authenticate"].startswith("Bearer")
        for rank, key in KEYS["acme"].items():
            enough = role == "none" or ranks.index(rank) >= ranks.index(role)
            assert (server.ask(method.upper(), path, body, key=key).status == 403) == (not enough), (operation, rank)
        assert server.ask(method.upper(), path, body, key="nobody's").status == 401


def test_tokens(server: ServerHouse) -> None:
    def status(given: str, path: str = "/api/v1/plugins", method: str = "GET", body: Any = None) -> int:
        return server.ask(method, path, body, headers={"Authorization": f"Bearer {given}"}).status

    assert status(token()) == 200
    assert status(token(), EVENTS, "POST", {"event": "x"}) == 403
    assert status(token(role="writer"), EVENTS, "POST", {"event": "x"}) == 202
    assert status(token(exp=int(time.time()) - 10)) == 401
    assert status(token(tenant="../acme")) == 401
    assert status(token(role="root")) == 401
    assert status(jwt.encode({"sub": "s", "tenant": "acme"}, "another secret, long enough for HS256", "HS256")) == 401
    assert status(jwt.encode({"sub": "s", "tenant": "acme"}, None, "none")) == 401
    bearer = {"Authorization": f"Bearer {token(tenant='globex')}"}
    rows = server.ask("POST", "/api/analytics/query", {}, headers=bearer)
    assert rows.status == 200
    assert SECRET not in str(rows.body)
    assert server.ask("GET", "/api/v1/stream?stream=nothing&api_key=" + ACME).status == 422  # known, and then refused
    assert server.ask("GET", "/api/v1/plugins?api_key=" + ACME).status == 401  # only live streams take it there


def test_no_secret_is_logged(server: ServerHouse) -> None:
    server.ask("GET", "/api/v1/stream?stream=nothing&api_key=" + ACME)
    output = server.output()
    assert "listening" in output
    for secret in (TOKEN_SECRET, ACME, GLOBEX, *KEYS["acme"].values(), token()):
        assert secret not in output


# --- without keys


def test_without_keys_only_this_machine_may_connect(tmp_path: Any) -> None:
    with house(tmp_path) as made:
        code, output = made.refuse("--host", "0.0.0.0")
        assert (code, output.count("\n")) == (2, 1), output
        assert "'0.0.0.0' is reachable from other machines, and auth is off" in output
        assert "--insecure" in output
        made.start("--host", "0.0.0.0", "--insecure")
        assert made.post({"event": "x"})["accepted"] == 1
