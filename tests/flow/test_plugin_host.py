"""The plugin host over real storage: which plugins run, what they are given, and what they give back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from analytics_core import testing
from analytics_core.config import Plugins
from analytics_core.errors import (
    HookFailedError,
    HookTimeoutError,
    MalformedBodyError,
    NotFoundError,
    OverloadedError,
    ParameterError,
    PluginStartingError,
    PluginUnavailableError,
)
from analytics_core.events import UNPLACED_SCHEMA, EventBatch, placed
from analytics_core.lake.delta import DeltaStore
from analytics_core.manifest import Deployment, PluginSettingsManifest
from analytics_core.queries import tenant_order
from analytics_core.queries.history import History
from analytics_core.records import Outcome, Question, Request, TimeRange
from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS, T0, House, rows, until, until_state, view

ISOLATIONS = ("thread", "process")


def batch(*names: str) -> EventBatch:
    return EventBatch(placed(rows("a", names, T0), 0), "a", T0)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_plugin_counts_and_goes_on_after_a_restart(house: House, isolation: str) -> None:
    house.install("counting", isolation=isolation)

    async def main() -> None:
        house.add(3)
        async with house.host(forked=False) as host:
            assert view(host, "counting").state == "active"
            await until(lambda: house.value("counting") == 3, "three events")
            house.add(2)
            await until(lambda: house.value("counting") == 5, "five events")
            await until(lambda: view(host, "counting").lag == 0, "no lag")
        house.add(4)
        async with house.host(forked=False) as host:
            await until(lambda: house.value("counting") == 9, "nine events")
            shown = view(host, "counting")
            lane = host.lanes()[0]
        assert msgspec.structs.asdict(shown) | {"since": ""} == {
            "name": "counting",
            "version": "1.0",
            "state": "active",
            "reason": "",
            "since": "",
            "generation": 1,
            "isolation": isolation,
            "lag": 0,
            "events_processed": 9,
            "hooks": sorted(COUNTING_HOOKS),
            "errors": 0,
        }
        assert (lane.name, lane.state, lane.events) == ("counting", "active", 9)

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_lane_behind_the_log_goes_on_from_the_lake(tmp_path: Path, isolation: str) -> None:
    house = House(tmp_path, segment_bytes=1)
    house.install("counting", isolation=isolation)
    for n in (3, 4, 2):
        house.add(n)
    batches, _ = house.log.read(0)
    house.store = lake = DeltaStore(tmp_path / "lake")
    lake.append(pa.Table.from_batches([b.record_batch for b in batches[:2]]).unify_dictionaries(), 7)
    assert house.log.trim(7) == 7

    async def main() -> None:
        async with house.host() as host:
            await until(lambda: house.value("counting") == 9, "all nine")
            assert (view(host, "counting").events_processed, view(host, "counting").errors) == (9, 0)

    asyncio.run(main())
    lake.close()
    house.close()


def test_transitions_are_recorded_and_pushed(house: House) -> None:
    house.install("counting", isolation="thread")

    async def main() -> None:
        async with house.host():
            await until(lambda: house.states("counting")[-1:] == ["active"], "the last push")

    asyncio.run(main())
    assert house.states("counting") == ["loading", "starting", "active"]
    record = msgspec.json.decode(house.state.document("", "plugin", "counting") or b"")
    assert (record["before"], record["state"], record["generation"]) == ("starting", "active", 1)


def test_async_hooks_work_like_plain_ones(house: House) -> None:
    body = COUNTING.replace("def process", "async def process").replace("def export", "async def export")
    house.install("counting", body, isolation="thread")

    async def main() -> None:
        house.add(3)
        async with house.host():
            await until(lambda: house.value("counting") == 3, "three events")
        house.add(1)
        async with house.host():
            await until(lambda: house.value("counting") == 4, "four events")

    asyncio.run(main())


def test_a_plugin_without_export_state_is_shown_as_stateless(house: House) -> None:
    house.install("plain", "@hookimpl\ndef process(self, batch): pass", ["process"], isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            assert (await until_state(host, "plain", "active")).reason.startswith("stateless: ")

    asyncio.run(main())


# --- which run -------------------------------------------------------------------------------------------------------


def shown(house: House, **options: Any) -> dict[str, tuple[str, str]]:
    async def main() -> dict[str, tuple[str, str]]:
        async with house.host(**options) as host:
            return {v.name: (v.state, v.reason) for v in host.views()}

    return asyncio.run(main())


def will(name: str, **fields: Any) -> Deployment:
    return Deployment(plugins={name: PluginSettingsManifest(name=name, **fields)})


def three(house: House) -> None:
    for name in ("one", "two"):
        house.install(name, isolation="thread")


def test_settings_of_a_plugin_disable_it(house: House) -> None:
    three(house)
    found = shown(house, deployment=will("two", enabled=False))
    assert found["one"][0] == "active"
    assert found["two"] == ("disabled", "plugin-settings say 'enabled: false'")


def test_plugins_enabled_beats_the_settings(house: House) -> None:
    three(house)
    found = shown(house, plugins=Plugins(enabled=("two", "tow")), deployment=will("two", enabled=False))
    assert found["one"] == ("disabled", "PLUGINS_ENABLED does not list it")
    assert found["two"][0] == "active"
    assert found["tow"] == ("unresolved", "PLUGINS_ENABLED names it, but it is not installed; did you mean 'two'?")


def test_without_auto_load_only_what_is_enabled_runs(house: House) -> None:
    three(house)
    found = shown(house, plugins=Plugins(auto_load=False), deployment=will("two"))
    assert found["one"] == ("disabled", "PLUGINS_AUTO_LOAD is off and no plugin-settings enable it")
    assert found["two"][0] == "active"


def test_a_disabled_plugin_is_not_imported(house: House, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    house.install("one", head=f"Path({str(mark)!r}).touch()", isolation="thread")
    assert shown(house, plugins=Plugins(enabled=()))["one"][0] == "disabled"
    assert not mark.exists()
    assert shown(house)["one"][0] == "active"
    assert mark.exists()


def test_requirements_block_and_say_why(house: House) -> None:
    house.install("first", isolation="thread")
    house.install("fits", isolation="thread", requires={"plugins": {"first": ">=1"}})
    house.install("newer", isolation="thread", requires={"plugins": {"first": ">=2"}})
    house.install("absent", isolation="thread", requires={"plugins": {"frist": ""}})
    house.install("after-newer", isolation="thread", requires={"plugins": {"newer": ""}})
    house.install("ring-a", isolation="thread", requires={"plugins": {"ring-b": ""}})
    house.install("ring-b", isolation="thread", requires={"plugins": {"ring-a": ""}})
    house.install("breaks", "pass", ["process"], head="import nowhere", isolation="thread")
    house.install("after-breaks", isolation="thread", requires={"plugins": {"breaks": ""}})

    async def main() -> dict[str, tuple[str, str]]:
        async with house.host() as host:
            await until_state(host, "fits", "active")
            await until(lambda: "load_error" in view(host, "after-breaks").reason, "the block")
            return {v.name: (v.state, v.reason) for v in host.views()}

    found = asyncio.run(main())
    assert found["newer"] == ("blocked", "requires 'first' >=2, installed is 1.0")
    assert found["absent"] == ("blocked", "requires 'frist', which is not installed; did you mean 'first'?")
    assert found["after-newer"][0] == "blocked"
    assert "which is blocked: requires 'first' >=2" in found["after-newer"][1]
    assert found["ring-a"][0] == found["ring-b"][0] == "blocked"
    assert "requires itself by way of ring-a -> ring-b -> ring-a" in found["ring-a"][1]
    assert found["breaks"][0] == "load_error"
    assert "nowhere" in found["breaks"][1]
    assert found["after-breaks"][0] == "blocked"


def test_settings_are_checked_filled_in_and_given_to_setup(house: House) -> None:
    body = """
    @hookimpl
    def setup(self, context):
        self.gap = context.settings["gap"]
        context.logger.info("ready", gap=self.gap)

    @hookimpl
    def process(self, batch):
        return ProcessResult([Metric(name="gap", value=self.gap, window=Window(DAY, 60))])
    """
    schema = {
        "type": "object",
        "properties": {"gap": {"type": "integer", "default": 30}},
        "additionalProperties": False,
    }
    for name in ("plain", "given", "wrong"):
        house.install(name, body, ["setup", "process"], settings=schema, isolation="thread")
    intents = {
        "given": PluginSettingsManifest(name="given", settings={"gap": 7}),
        "wrong": PluginSettingsManifest(name="wrong", settings={"gap": "long"}),
    }

    async def main() -> None:
        house.add()
        async with house.host(deployment=Deployment(plugins=intents)) as host:
            await until(lambda: (house.value("plain", "gap"), house.value("given", "gap")) == (30, 7), "both gaps")
            wrong = view(host, "wrong")
            assert wrong.state == "unresolved"
            assert "settings.gap" in wrong.reason

    asyncio.run(main())


def test_the_operators_isolation_and_limits_come_first(house: House) -> None:
    house.install("one", isolation="process")

    async def main() -> None:
        async with house.host(deployment=will("one", isolation="thread")) as host:
            assert view(host, "one").isolation == "thread"

    asyncio.run(main())


def test_two_plugins_that_claim_one_route_do_not_run(house: House) -> None:
    for name in ("one", "two"):
        hooks = ["ingest"]
        provides = {"routes": ["POST /v1/track"]}
        house.install(name, "@hookimpl\ndef ingest(self, request): return []", hooks, provides=provides)
    found = shown(house)
    assert {state for state, _ in found.values()} == {"invalid"}
    assert "route 'POST /v1/track' is claimed by one and two" in found["one"][1]


# --- concurrent hooks ------------------------------------------------------------------------------------------------

ASKED = """
@hookimpl
def setup(self, context):
    self.name = context.name

@hookimpl
def insight(self, question, events):
    if question.analysis == "fails":
        raise ValueError("no data")
    if question.analysis == "refuses":
        from analytics_core import ParameterError
        raise ParameterError("p", "1 is not valid; valid are 2 to 20")
    if question.analysis == "slow":
        time.sleep(30)
    return Answer(events.table(["name"]), [Insight(key="k", title=self.name, description=str(question.parameters))])

@hookimpl
def process(self, batch):
    while len(batch) and os.environ.get("HOLD_PROCESS") and Path(os.environ["HOLD_PROCESS"]).exists():
        time.sleep(0.01)
"""


class Spec:
    """A reader's spec as `to_spec` gives it: picklable, with `open`."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def to_spec(self) -> Spec:
        return self

    def open(self) -> Spec:
        return self

    def table(self, columns: list[str]) -> Any:
        return pa.table({columns[0]: self.names})


def question(analysis: str) -> Question:
    return Question(analysis=analysis, tenant="a", range=TimeRange(T0, T0), parameters={"p": 1})


def asked(house: House, isolation: str) -> None:
    analyses = [
        {"name": name, "title": name.title(), "parameters": {"type": "object"}}
        for name in ("names", "fails", "refuses", "slow")
    ]
    limits = {"call_seconds": 1.0}
    house.install(
        "asked",
        ASKED,
        ["setup", "insight", "process"],
        provides={"analyses": analyses},
        isolation=isolation,
        limits=limits,
    )


def test_in_a_process_the_user_order_is_that_of_the_cache(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = """
    @hookimpl
    def insight(self, question, events):
        parts = events.in_user_order(lambda part: [part.key.tolist(), part.seq.tolist()])
        return Answer([{"parts": str(parts), "mapped": "run-" in Path("/proc/self/maps").read_text()}])
    """
    analyses = [{"name": "ordered", "title": "Ordered", "parameters": {"type": "object"}}]
    house.install("ordered", ordered, ["insight"], provides={"analyses": analyses}, isolation="process")
    monkeypatch.setattr(tenant_order, "FLUSH", 2)
    lake = DeltaStore(house.data / "lake")
    history = History(house.log, lake, cache=house.data / "cache")

    def post(*users: str) -> None:
        made = testing.batch(
            [{"event": "x", "event_id": user, "user_id": user, "timestamp": T0} for user in users], "a"
        )
        columns = made.record_batch.columns[2:]
        house.log.append([pa.RecordBatch.from_arrays(columns, schema=UNPLACED_SCHEMA)], T0)

    async def main() -> None:
        post("u1", "u2", "u3")
        with history.reader("a") as reader:
            assert reader.in_user_order(len) == [3]
        post("u4")
        async with house.host() as host:
            with history.reader("a") as reader:
                answer = await host.calls.insight(question("ordered"), reader)
                here = str(reader.in_user_order(lambda part: [part.key.tolist(), part.seq.tolist()]))
                assert answer.table == [{"parts": here, "mapped": True}]

    asyncio.run(main())
    history.close()
    lake.close()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_analysis_is_answered_or_fails_by_name(house: House, isolation: str) -> None:
    asked(house, isolation)

    async def main() -> None:
        async with house.host() as host:
            spec = host.calls.analyses()["names"]
            assert (spec.plugin, spec.title, spec.schema) == ("asked", "Names", {"type": "object"})
            answer = await host.calls.insight(question("names"), Spec(["x", "y"]))
            assert answer.table.to_pydict() == {"name": ["x", "y"]}
            assert (answer.insights[0].title, answer.insights[0].description) == ("asked", "{'p': 1}")
            with pytest.raises(HookFailedError, match="Plugin 'asked': hook 'insight' failed: ValueError: no data"):
                await host.calls.insight(question("fails"), Spec([]))
            with pytest.raises(ParameterError, match=r"^p: 1 is not valid; valid are 2 to 20$"):  # counts as no failure
                await host.calls.insight(question("refuses"), Spec([]))
            with pytest.raises(HookTimeoutError, match="no answer within 1 s"):
                await host.calls.insight(question("slow"), Spec([]))
            with pytest.raises(NotFoundError, match="did you mean 'names'"):
                await host.calls.insight(question("name"), Spec([]))
            assert (view(host, "asked").errors, view(host, "asked").state) == (2, "active")

    asyncio.run(main())


def test_a_long_process_holds_up_no_insight(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "held"
    held.touch()
    monkeypatch.setenv("HOLD_PROCESS", str(held))
    asked(house, "process")

    async def main() -> None:
        async with house.host(
            deployment=will("asked", limits=msgspec.convert({"call_seconds": 20.0}, _limits()))
        ) as host:
            house.add()
            await until(lambda: host.lanes()[0].lag == 1, "the lane in process")
            answer = await host.calls.insight(question("names"), Spec(["x"]))
            assert answer.table.num_rows == 1
            assert host.lanes()[0].lag == 1
            held.unlink()
            await until(lambda: host.lanes()[0].lag == 0, "the lane at the end")

    asyncio.run(main())


def _limits() -> Any:
    from analytics_core.manifest import Limits

    return Limits


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_foreign_protocol_goes_in_and_its_answer_out(house: House, isolation: str) -> None:
    body = """
    @hookimpl
    def ingest(self, request):
        if not request.body:
            raise ValueError("no word was sent")
        return [Event.of(word, {"from": request.path}) for word in request.body.decode().split()]

    @hookimpl
    def reply(self, request, outcome):
        return Reply(200, f"{outcome.accepted} taken".encode(), {"X-Tenant": request.tenant})
    """
    house.install("words", body, ["ingest", "reply"], provides={"routes": ["POST /words"]}, isolation=isolation)
    request = Request(method="POST", path="/words", headers={}, query={}, body=b"one two", tenant="a")

    async def main() -> None:
        async with house.host() as host:
            assert host.calls.route("POST", "/words") == "words"
            assert host.calls.route("GET", "/words") is None
            events = await host.calls.ingest("words", request)
            assert isinstance(events, list)
            assert [(e.name, bytes(e.properties)) for e in events] == [
                ("one", b'{"from":"/words"}'),
                ("two", b'{"from":"/words"}'),
            ]
            reply = await host.calls.reply("words", request, Outcome(accepted=2))
            assert (reply.status, reply.body, reply.headers) == (200, b"2 taken", {"X-Tenant": "a"})
            with pytest.raises(MalformedBodyError, match="the body cannot be read: no word was sent"):
                await host.calls.ingest("words", msgspec.structs.replace(request, body=b""))
            assert view(host, "words").errors == 0  # the client was wrong, not the plugin

    asyncio.run(main())


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_fold_once_leaves_the_lane_alone(house: House, isolation: str) -> None:
    house.install("counting", isolation=isolation)

    async def main() -> None:
        house.add(5)
        async with house.host() as host:
            await until(lambda: house.value("counting") == 5, "five events")
            result = await host.calls.fold_once("counting", [batch("x", "y"), batch("z")])
            assert [(m.name, m.value) for m in result.metrics] == [("events", 3)]
            house.add(1)
            await until(lambda: house.value("counting") == 6, "six events")
            with pytest.raises(NotFoundError):
                await host.calls.fold_once("countin", [])

    asyncio.run(main())


# --- enrich ----------------------------------------------------------------------------------------------------------

MARK = """
@hookimpl
def enrich(self, batch):
    texts = batch.column("properties").to_pylist()
    return Enrichment([t[:-1] + ("," if len(t) > 2 else "") + '"{0}":1}' for t in texts])
"""
DROP = """
@hookimpl
def enrich(self, batch):
    return Enrichment(drop=[name == "secret" for name in batch.column("name").to_pylist()])
"""


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_enriching_plugins_run_in_order(house: House, isolation: str) -> None:
    house.install("a-last", MARK.replace("{0}", "last"), ["enrich"], after=["z-first"], isolation=isolation)
    house.install("m-drop", DROP, ["enrich"], after=["z-first"], isolation="thread", on_failure="reject")
    house.install("z-first", MARK.replace("{0}", "first"), ["enrich"], isolation="thread")

    async def main() -> None:
        async with house.host() as host:
            assert host.calls.enriches()
            enriched, dropped = await host.calls.enrich(batch("x", "secret", "y"))
            texts = [msgspec.json.decode(t) for t in enriched.column("properties").to_pylist()]
            assert [list(texts[0]), list(texts[2])] == [["first", "last"]] * 2
            assert dropped is not None
            assert dropped.tolist() == [False, True, False]

    asyncio.run(main())


FAULTY = """
@hookimpl
def enrich(self, batch):
    raise ValueError("cannot")
"""


def test_a_failing_enrich_passes_or_rejects_as_its_manifest_says(house: House) -> None:
    house.install("passing", FAULTY, ["enrich"], isolation="thread")

    async def passes() -> None:
        async with house.host() as host:
            enriched, dropped = await host.calls.enrich(batch("x"))
            assert (enriched.column("properties").to_pylist(), dropped) == (["{}"], None)
            assert view(host, "passing").errors == 1

    asyncio.run(passes())
    house.install("rejecting", FAULTY, ["enrich"], isolation="thread", on_failure="reject")

    async def rejects() -> None:
        async with house.host() as host:
            with pytest.raises(OverloadedError, match="Plugin 'rejecting': hook 'enrich' failed: ValueError: cannot"):
                await host.calls.enrich(batch("x"))

    asyncio.run(rejects())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Enrichment(['{}', '{}'])", "2"),
        ("Enrichment(['[]'])", "object"),
        ("Enrichment(['{'])", "malformed"),
        ("5", "Enrichment"),
    ],
)
def test_an_enrichment_that_would_corrupt_the_log_is_a_failure(house: House, answer: str, problem: str) -> None:
    house.install(
        "wrong",
        f"@hookimpl\ndef enrich(self, batch): return {answer}",
        ["enrich"],
        isolation="thread",
        on_failure="reject",
    )

    async def main() -> None:
        async with house.host() as host:
            with pytest.raises(OverloadedError, match=problem):
                await host.calls.enrich(batch("x"))

    asyncio.run(main())


def test_a_slow_enrich_delays_one_request_and_not_every_one(house: House) -> None:
    body = "@hookimpl\ndef enrich(self, batch):\n    Path(COUNT).open('a').write('x')\n    time.sleep(30)"
    count = house.data / "asked"
    house.install("slow", body, ["enrich"], head=f"COUNT = {str(count)!r}", isolation="thread")

    async def main() -> None:
        async with house.host(enrich_seconds=0.05) as host:
            for _ in range(20):
                enriched, dropped = await host.calls.enrich(batch("x"))
                assert (len(enriched), dropped) == (1, None)
        assert len(count.read_text()) < 5

    asyncio.run(main())


def test_a_reject_plugin_that_does_not_run_rejects_and_a_pass_plugin_passes(house: House) -> None:
    house.install("broken", MARK, ["enrich"], head="import nowhere", isolation="thread")

    async def passes() -> bool:
        async with house.host() as host:
            await host.calls.enrich(batch("x"))
            return host.calls.enriches()

    assert asyncio.run(passes()) is False
    house.install("masking", MARK, ["enrich"], head="import nowhere", isolation="thread", on_failure="reject")

    async def rejects() -> None:
        async with house.host() as host:
            assert host.calls.enriches()
            with pytest.raises(OverloadedError, match="'masking': is load_error"):
                await host.calls.enrich(batch("x"))

    asyncio.run(rejects())


REFUSES = "@hookimpl\ndef setup(self, context): raise OSError('no key')\n"
KEYED = {"type": "object", "properties": {"key": {"type": "string"}}, "additionalProperties": False}
DOWN: dict[str, dict[str, Any]] = {
    "unresolved": {"settings": KEYED},
    "invalid": {"colour": "red"},
    "invalid by a clash": {"provides": {"analyses": [{"name": "names"}]}},
    "incompatible": {"manifest": 2},
    "incompatible with this host": {"requires": {"host": ">=99"}},
    "blocked": {"requires": {"plugins": {"absent": ""}}},
    "blocked at runtime": {"requires": {"plugins": {"breaks": ""}}},
    "load_error": {"head": "import nowhere"},
    "start_error": {"body": REFUSES + MARK, "hooks": ["setup", "enrich"]},
    "quarantined": {"head": "os._exit(4)", "isolation": "process"},
}


@pytest.mark.parametrize("down", DOWN)
def test_nothing_is_stored_unmasked_whatever_keeps_the_masking_plugin_from_running(house: House, down: str) -> None:
    options = {"body": MARK, "hooks": ["enrich"], "isolation": "thread", "on_failure": "reject", **DOWN[down]}
    house.install("masking", **options)
    house.install("breaks", "pass", ["process"], head="import nowhere", isolation="thread")
    house.install("other", ASKED, ["insight"], provides={"analyses": [{"name": "names"}]}, isolation="thread")
    state = down.split(" ")[0]

    async def main() -> None:
        async with house.host(
            deployment=will("masking", settings={"kye": "k"} if state == "unresolved" else {})
        ) as host:
            await until_state(host, "masking", state)
            assert host.calls.enriches()
            with pytest.raises(OverloadedError, match=f"Plugin 'masking': is {state}"):
                await host.calls.enrich(batch("x"))
        async with house.host(deployment=will("masking", enabled=False)) as host:  # so says the operator
            assert view(host, "masking").state == "disabled"
            assert not host.calls.enriches()
            assert (await host.calls.enrich(batch("x")))[1] is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "guards"),
    [
        ("kind: plugin\nhooks: [enrich\non_failure: 'reject'\n", True),
        ("{hooks: [enrich], on_failure: rejct, colour: red}", True),
        ("hooks: [enrich]\non_failure: pass  # not reject\ncolour: red\n", False),
        ("hooks: [enrich]\n# on_failure: reject\ncolour: red\n", False),
        ("hooks: [process]\non_failure: reject\ncolour: red\n", False),
    ],
)
def test_a_manifest_that_cannot_be_read_is_taken_for_what_it_seems(house: House, text: str, guards: bool) -> None:
    house.install("masking", MARK, ["enrich"], isolation="thread")
    next(house.site.glob("*/plugin.yaml")).write_text(text, encoding="utf-8")

    async def main() -> None:
        async with house.host() as host:
            assert view(host, "masking").state == "invalid"
            assert host.calls.enriches() is guards

    asyncio.run(main())


def held(gate: Path) -> str:
    """Code that waits for a file."""
    return f"while not Path({str(gate)!r}).exists(): time.sleep(0.01)"


@pytest.mark.timeout(9)  # a start that waited for them would take longer
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_start_does_not_wait_for_plugins_that_hang(house: House, isolation: str) -> None:
    gate = house.data / "gate"
    house.install("imports", head=held(gate), isolation=isolation)
    body = f"@hookimpl\ndef setup(self, context):\n    {held(gate)}\n{COUNTING}"
    house.install("sets-up", body, ("setup", *COUNTING_HOOKS), isolation=isolation)

    async def main() -> None:
        house.add(2)
        async with house.host(settled=False) as host:
            assert {v.state for v in host.views()} <= {"discovered", "loading", "starting"}
            gate.touch()
            await until(lambda: house.value("imports") == house.value("sets-up") == 2, "both counts")

    asyncio.run(main())


def test_a_start_waits_for_plugins_that_enrich(house: House) -> None:
    house.install("slow", MARK.replace("{0}", "slow"), ["enrich"], head="time.sleep(0.2)", isolation="thread")

    async def main() -> None:
        async with house.host(settled=False) as host:
            enriched, _ = await host.calls.enrich(batch("x"))
            assert enriched.column("properties").to_pylist() == ['{"slow":1}']

    asyncio.run(main())


def test_a_plugin_that_does_not_run_answers_unavailable(house: House) -> None:
    house.install(
        "broken",
        ASKED,
        ["setup", "insight", "process"],
        head="import nowhere",
        provides={"analyses": [{"name": "names"}]},
    )

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "broken", "load_error")
            with pytest.raises(PluginUnavailableError, match="'broken': is load_error; GET /api/v1/plugins says why"):
                await host.calls.insight(question("names"), Spec([]))

    asyncio.run(main())


def test_a_plugin_on_its_way_up_says_so_and_then_answers(house: House) -> None:
    gate = house.data / "gate"
    provides = {"analyses": [{"name": "names"}]}
    house.install("slow", ASKED, ["setup", "insight", "process"], head=held(gate), provides=provides)

    async def main() -> None:
        async with house.host(settled=False) as host:
            await until_state(host, "slow", "loading")
            with pytest.raises(PluginStartingError, match="'slow': is loading; ask again in a moment"):
                await host.calls.insight(question("names"), Spec([]))
            gate.touch()
            await until_state(host, "slow", "active")
            await host.calls.insight(question("names"), Spec([]))

    asyncio.run(main())


def test_the_host_leaves_no_thread_and_no_process_behind(house: House) -> None:
    house.install("counting", isolation="thread")
    house.install("apart", isolation="process")

    async def main() -> None:
        async with house.host() as host:
            await until_state(host, "apart", "active")

    before = set(threading.enumerate())
    asyncio.run(main())
    left = [t.name for t in set(threading.enumerate()) - before if t.is_alive()]
    assert left == []
