"""The packages under examples/ as a stranger uses them: built, installed, run by a host, and as their READMEs say."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from analytics_core.events import UNPLACED_SCHEMA
from analytics_core.host.examining.checklist import checklist
from analytics_core.manifest import Deployment, PluginManifest, PluginSettingsManifest, read_plugin
from analytics_core.testing import batch, started
from shopping_carts.plugin import ShoppingCarts
from tests.flow.plugin_house import T0, House, until, view
from tests.flow.server_house import ROOT, Answer, ServerHouse, equals

EXAMPLES = ROOT / "examples"
CARTS, GITHUB, CHAT = NAMES = ("shopping-carts", "github-webhooks", "chat-alerts")
SECRET = "it is no secret at all"
ROUTE = "/webhooks/github"
PUSH = {
    "ref": "refs/heads/main",
    "commits": [{}],
    "repository": {"full_name": "acme/shop"},
    "sender": {"login": "octocat"},
}


def readme(name: str) -> str:
    return (EXAMPLES / name / "README.md").read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", readme(name), re.MULTILINE | re.DOTALL)


def manifest(name: str) -> PluginManifest:
    return read_plugin(EXAMPLES / name / name.replace("-", "_") / "plugin.yaml")


# --- built and installed


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built by their own build backend."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    projects = [str(EXAMPLES / name) for name in NAMES]
    done = subprocess.run([*command, "--wheel-dir", str(folder), *projects], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_published(wheels: dict[str, Path], name: str) -> None:
    points = checklist(wheels[name], 60.0)
    assert len(points) > 5
    assert [point for point in points if point.ok is not True] == []


@pytest.fixture(scope="module")
def site(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    for wheel in wheels.values():
        zipfile.ZipFile(wheel).extractall(folder)
    return folder


def house_of(site: Path, folder: Path, *plugins: str, **storage: Any) -> ServerHouse:
    """A house that runs these and no others, under the settings of their READMEs; not started yet."""
    sections = {"lanes": {"checkpoint_seconds": 0.1}, "storage": storage}
    environ = {"PYTHONPATH": str(site), "PLUGINS_ENABLED": ",".join(plugins), "GITHUB_WEBHOOK_SECRET": SECRET}
    made = ServerHouse(folder, host=sections, environ=environ)
    for name in plugins:
        for text in blocks(name, "yaml"):
            (made.manifests / f"{name}.yaml").write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def server(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHouse]:
    made = house_of(site, tmp_path_factory.mktemp("examples"), *NAMES)
    try:
        yield made.start()
    finally:
        made.end()


@pytest.mark.server
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_a_process_of_its_own(server: ServerHouse, name: str) -> None:
    row = server.plugin(name)
    assert (row["state"], row["isolation"], row["reason"]) == ("active", "process", "")


# --- shopping-carts


@pytest.mark.server
def test_the_events_of_the_readme_are_a_cart_that_is_bought(server: ServerHouse) -> None:
    (text,) = [text for text in blocks(CARTS, "console") if "curl" in text]
    (body,) = re.findall(r"-d '(.*?)'", text, re.DOTALL)
    assert server.post(json.loads(body))["accepted"] == 2
    equals(lambda: server.total(f"{CARTS}.purchased_value"), 39.98, "what was bought")
    assert (server.total(f"{CARTS}.opened"), server.total(f"{CARTS}.purchased")) == (1, 1)


def test_the_readme_shows_how_a_state_is_migrated() -> None:
    before, after = map(json.loads, blocks(CARTS, "json"))
    plugin = started(ShoppingCarts)
    plugin.import_state(before, version=1)
    assert plugin.export_state() == after


def test_the_readme_names_every_metric() -> None:
    (named,) = re.findall(r"as `shopping-carts.<name>`: (.*?)\n\n", readme(CARTS), re.DOTALL)
    assert re.findall(r"`(\w+)`", named) == [metric.name for metric in manifest(CARTS).provides.metrics]


class Shop:
    """Posts carts to a `House`, one second after the other, and keeps the books."""

    def __init__(self, built: House) -> None:
        self._house = built
        self._visitors = 0
        self.counted: Counter[str] = Counter()

    def visit(self) -> None:
        """Two visitors put in three things, and one of them buys."""
        ada, bob = f"ada{self._visitors}", f"bob{self._visitors}"
        self._visitors += 1
        self._post([("add_to_cart", ada), ("add_to_cart", bob), ("add_to_cart", ada), ("purchase", ada)])
        self.counted.update(opened=2, items=3, purchased=1)

    def leave_alone(self) -> None:
        """Nothing happens for two hours."""
        self._house.at += timedelta(hours=2)
        self._house.log.append([], self._house.at)

    def found(self, *names: str) -> dict[str, float]:
        """What the plugin has made durable, over all minutes."""
        end = T0 + timedelta(days=1)
        points = {name: self._house.state.points("a", name, T0, end) for name in names or self.counted}
        return {name: sum(point.value for point in of if point.lane == CARTS) for name, of in points.items()}

    def _post(self, done: list[tuple[str, str]]) -> None:
        at = self._house.at = self._house.at + timedelta(seconds=1)
        properties = {"price": 10}
        made = batch(
            [{"event": event, "user_id": who, "timestamp": at, "properties": properties} for event, who in done], "a"
        )
        columns = made.record_batch.columns[2:]
        self._house.log.append([pa.RecordBatch.from_arrays(columns, schema=UNPLACED_SCHEMA)], at)


def save(package: Path, site: Path) -> None:
    """What an upgrade leaves on disk."""
    shutil.copytree(package, site / package.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "shopping_carts-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {CARTS}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[analytics_core.plugins]\n{CARTS} = shopping_carts:plugin.yaml\n")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_version_2_takes_over_from_version_1_while_events_flow(tmp_path: Path, isolation: Any) -> None:
    v1, v2 = EXAMPLES / CARTS / "tests" / "v1" / "shopping_carts", EXAMPLES / CARTS / "shopping_carts"
    built = House(tmp_path)
    save(v1, built.site)
    intent = Deployment(plugins={CARTS: PluginSettingsManifest(name=CARTS, isolation=isolation)})
    shop = Shop(built)

    async def main() -> None:
        async with built.host(deployment=intent) as host:

            async def replaced(package: Path, number: int) -> None:
                """Receipt ``number`` is there; visitors come all the time."""
                save(package, built.site)
                refreshing = asyncio.create_task(asyncio.to_thread(host.refresh))
                while len(host.receipts(CARTS)) < number:
                    shop.visit()
                    await asyncio.sleep(0.001)
                assert await refreshing == [CARTS]

            shop.visit()
            await until(lambda: shop.found() == shop.counted, "the first carts, in version 1")
            await replaced(v2, 1)
            (found,) = host.receipts(CARTS)
            assert (found.outcome, found.after, found.events_lost) == ("active", 2, 0), found.reason
            shop.visit()
            await until(lambda: shop.found() == shop.counted, f"{shop.counted}, here {shop.found()}")
            assert shop.found("abandoned") == {"abandoned": 0}

            await replaced(v1, 2)
            assert host.receipts(CARTS)[1].outcome == "rolled_back"
            assert "state version 2 is not known; valid is 1" in view(host, CARTS).reason

            await until(lambda: shop.found() == shop.counted, f"{shop.counted} after the rollback")
            shop.leave_alone()
            left = shop.counted["opened"] - shop.counted["purchased"]
            await until(lambda: shop.found("abandoned") == {"abandoned": left}, f"{left} abandoned carts, old and new")
            assert shop.found() == shop.counted
            assert 10 <= shop.found("abandoned_value")["abandoned_value"] < 10 * left, "version 1 knew no values"

    try:
        asyncio.run(main())
    finally:
        built.close()


# --- github-webhooks


def signature_of(body: bytes) -> str:
    return "sha256=" + hmac.new(SECRET.encode(), body, "sha256").hexdigest()


def deliver(server: ServerHouse, body: bytes, delivery: str, signature: str = "") -> Answer:
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": signature or signature_of(body),
    }
    answer = server.fetch("POST", ROUTE, body, headers=headers)
    return Answer(answer.status, answer.headers, json.loads(answer.body))


def is_problem(answer: Answer, status: int, detail: str) -> None:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer
    assert answer.body["status"] == status
    assert detail in answer.body["detail"]


@pytest.mark.server
def test_a_delivery_is_counted_once_and_a_forged_one_never(server: ServerHouse) -> None:
    body = json.dumps(PUSH).encode()
    for delivery, accepted in (("d-1", 1), ("d-1", 0), ("d-2", 1)):
        answer = deliver(server, body, delivery)
        assert (answer.status, answer.body) == (202, {"accepted": accepted, "duplicates": 1 - accepted})
    is_problem(deliver(server, body, "d-3", "sha256=" + 64 * "0"), 401, "is not the signature")
    is_problem(deliver(server, body + b" ", "d-3", signature_of(body)), 401, "is not the signature")
    is_problem(deliver(server, b"{", "d-3"), 400, "Expecting")
    assert server.total("github_push") == 2
    (row, _) = server.history(events=["github_push"])
    assert (row["userId"], row["source"]) == ("octocat", GITHUB)
    assert row["properties"] == {"repository": "acme/shop", "branch": "main", "commits": 1}


@pytest.mark.server
def test_a_full_host_is_said_in_the_answer(site: Path, tmp_path: Path) -> None:
    made = house_of(site, tmp_path, GITHUB, disk_reserve_bytes=1 << 60)
    try:
        made.start()
        answer = deliver(made, json.dumps(PUSH).encode(), "d-1")
        is_problem(answer, 503, "nothing was stored")
        assert answer.headers["Retry-After"] == "10"
    finally:
        made.end()


def test_the_readme_lists_what_is_stored_by_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `github_(\w+)` \| (.+) \|$", readme(GITHUB), re.MULTILINE)
    default = manifest(GITHUB).settings["properties"]["events"]["default"]
    assert [kind for kind, _, _ in rows] == [kind for _, kind, _ in rows] == default
    (settings,) = [yaml.safe_load(text)["settings"] for text in blocks(GITHUB, "yaml")]
    assert settings["events"] == default


# --- chat-alerts


def test_the_call_of_the_readme_reaches_a_chat(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(CHAT, "python")
    posted = []

    async def take(request: web.Request) -> web.Response:
        posted.append(await request.json())
        return web.Response(text="ok")

    async def scenario() -> None:
        app = web.Application()
        app.router.add_post("/hooks/your-key", take)
        async with TestServer(app) as chat:
            call = code.replace("http://localhost:8065", str(chat.make_url("")).rstrip("/"))
            assert call != code
            await asyncio.to_thread(exec, call, {})

    asyncio.run(scenario())
    assert "delivered=True" in capsys.readouterr().out
    assert [body["text"] for body in posted] == ["FIRING: checkout (1 alert)"]


def test_the_readme_lists_the_settings_of_a_channel() -> None:
    (channel,) = manifest(CHAT).provides.channels
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\|", readme(CHAT).partition("| setting |")[2], re.MULTILINE)
    shown = {name: default for name, default in rows if name in channel.settings["properties"]}
    assert list(shown) == list(channel.settings["properties"])
    defaults = {name: part["default"] for name, part in channel.settings["properties"].items() if "default" in part}
    assert {name: float(default) for name, default in shown.items() if default.isdigit()} == defaults


# --- all


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_what_is_there(name: str) -> None:
    text = readme(name)
    assert f"pip install -e examples/{name}" in text
    for path in re.findall(r"`([\w./]+\.(?:py|yaml)|tests/\w+)`", text):
        places = (EXAMPLES / name / path, EXAMPLES / name / name.replace("-", "_") / path)
        assert any(place.exists() for place in places), path
    assert {each.partition("\n")[0] for each in blocks(name, "yaml")} <= {f"# manifests/{name}.yaml"}
    languages = set(re.findall(r"^```(\w+)$", text, re.MULTILINE))
    assert languages <= {"console", "json", "yaml", "python"}
