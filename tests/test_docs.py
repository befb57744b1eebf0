"""README and CHANGELOG are true: their blocks are run, and what they name exists."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import yaml

from analytics_core.cli import _COMMANDS
from analytics_core.cli.plugins import _COMMANDS as _PLUGIN_COMMANDS
from analytics_core.config import Lanes
from analytics_core.host.health import State
from analytics_core.host.life.budget import CALL_COST, RestartPolicy
from analytics_core.host.life.change import Outcome, Strategy
from analytics_core.host.life.loopwatch import BLOCKED_SECONDS
from analytics_core.host.running.process_runtime import DEFAULT_MEMORY_MB
from analytics_core.manifest import PluginManifest
from tests.docs_house import README, blocks, commands, curl, prose, section
from tests.flow.server_house import ROOT, ServerHouse, equals, house, socket_of, stream_of

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
TUTORIAL = section("## Your first plugin, in ten minutes")
"""Run by test_tutorial.py."""

BLOCKS = blocks(README.replace(TUTORIAL, ""))
FILES = {block.path: block.text for block in BLOCKS if block.path}
PROSE = prose(README)


def table(header: str) -> list[list[str]]:
    """The rows of the table whose first heading is ``header``."""
    found = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert found, header
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- names


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for text in (README, CHANGELOG) for word in re.findall(r"(?:`|\$ )make (\w+)", text)}
    assert {"run", "test", "serve", "check", "bench"} <= named
    assert named <= targets


def test_every_command_exists() -> None:
    spoken = [" ".join(command.words) for command in commands(blocks(README))] + quoted(PROSE) + quoted(CHANGELOG)
    named = {word for text in spoken if text.startswith("analytics ") for word in re.findall(r"[a-z]+", text)[1:2]}
    assert {"serve", "import", "plugins"} <= named
    (listed,) = [text for text in quoted(CHANGELOG) if text.startswith("analytics ")]
    assert {part.split()[0] for part in listed.removeprefix("analytics ").split(" | ")} == set(_COMMANDS)
    assert named <= set(_COMMANDS)


def test_every_variable_is_read_with_the_default_that_is_told() -> None:
    host = (ROOT / "manifests" / "host.yaml").read_text(encoding="utf-8")
    rows = table("variable")
    assert len(rows) > 5
    for variables, defaults, _ in rows:
        held = {name: re.search(rf"\$\{{{name}(?::-([^}}$]*))?", host) for name in quoted(variables)}
        assert all(held.values()), f"manifests/host.yaml does not read one of {list(held)}"
        known = {str(Path(found[1] or ".")).lower() for found in held.values() if found}
        for default in quoted(defaults):
            assert str(Path(default)).lower() in known, f"{variables}: the default is not {default}"


def test_every_variable_of_the_host_is_told() -> None:
    written = (ROOT / "manifests" / "host.yaml").read_text(encoding="utf-8")
    host = written[written.index("\nkind: host") : written.index("\nbackends:")]
    read = set(re.findall(r"\$\{([A-Z]\w+)", host))
    assert read == {name for row in table("variable") for name in quoted(row[0])}


def test_every_plugin_command_is_told() -> None:
    told = {name.split()[2] for row in table("command") for name in quoted(row[0])}
    assert told == set(_PLUGIN_COMMANDS)


def test_every_state_outcome_strategy_and_key_is_told() -> None:
    def first_cells(header: str) -> set[str]:
        return {name for row in table(header) for name in quoted(row[0])}

    assert first_cells("state") == set(get_args(State))
    assert first_cells("outcome") == set(get_args(Outcome))
    assert first_cells("strategy") == set(get_args(Strategy))
    keys = {name.partition(".")[0] for name in first_cells("key of `plugin.yaml`")}
    required = {"manifest", "name", "title", "description", "entry"}
    assert keys | required == set(PluginManifest.__struct_fields__)


def test_the_figures_of_the_budget_are_those_of_the_host() -> None:
    policy = RestartPolicy()
    faults = " ".join(section("### Faults").split())
    assert Lanes().checkpoint_seconds == 5, "which the README writes as a word"
    for told in (
        f"`memory_mb` is {DEFAULT_MEMORY_MB}, `call_seconds` is {Lanes().hang_seconds:g} ",
        f"for {BLOCKED_SECONDS:g} s",
        f"after {policy.backoff:g} s, then after twice as long, up to {policy.backoff_most:g} s",
        f"{policy.failures} errors and {policy.hangs} calls",
        f"every {policy.refill:g} s",
        f"costs {CALL_COST:g} of an error",
        f"rests for {policy.cool_down:g} s",
        f"up to {policy.cool_down_most / 60:g} minutes",
    ):
        assert told in faults, told


def test_every_link_within_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links
    assert links <= anchors
    assert len(headings) == len(set(headings))


def test_every_folder_exists() -> None:
    for folders, _ in table("folder"):
        assert all((ROOT / folder).is_dir() for folder in quoted(folders)), folders


def test_every_file_that_is_named_exists() -> None:
    named = {text for text in quoted(PROSE) if re.fullmatch(r"[\w/]+\.(py|yaml|md)", text)} - {"plugin.yaml"}
    assert {"analytics_core/hookspecs.py", "manifests/host.yaml"} <= named
    assert not [path for path in named if not (ROOT / path).exists() and path not in {"my_purchases/__init__.py"}]


def test_the_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^(#+) (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == ("#", "Changelog")
    versions = [text for level, text in headings if level == "##"]
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", text) for text in versions[1:])
    kinds = {text for level, text in headings if level == "###"}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_plugin_of_the_readme_is_the_example() -> None:
    example = ROOT / "examples" / "purchases"
    for path, text in FILES.items():
        if not path.startswith("manifests/"):
            assert text.partition("\n")[2] in (example / path).read_text(encoding="utf-8"), path
    assert len(list(example.glob("tests/test_*.py"))) == 1


# --- run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of the README, built from its own blocks by its own build backend, and installed."""
    source = tmp_path_factory.mktemp("purchases")
    for path, text in FILES.items():
        if not path.startswith("manifests/"):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text, encoding="utf-8")
    (source / "my_purchases" / "__init__.py").touch()
    target = source / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (target / "my_purchases" / "plugin.yaml").exists()
    return target


@pytest.fixture(scope="module")
def server(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHouse]:
    """A fresh server with the plugin and the metric of the README."""
    quick = {"lanes": {"checkpoint_seconds": 0.1}}
    with house(tmp_path_factory.mktemp("docs"), host=quick, environ={"PYTHONPATH": str(site)}) as made:
        for path, text in FILES.items():
            if path.startswith("manifests/"):
                (made.manifests / Path(path).name).write_text(text, encoding="utf-8")
        yield made.start()


@pytest.mark.server
def test_the_curl_examples(tmp_path: Path) -> None:
    examples = [command for command in commands(BLOCKS) if command.words[0] == "curl"]
    assert len(examples) >= 4
    with house(tmp_path) as made:  # of its own: the first example says which position it is given
        made.start()
        for _, words, output in examples:
            with curl(words, made.port) as reply:
                assert reply.status in (200, 202), words
                if reply.headers["Content-Type"].startswith("text/event-stream"):
                    assert reply.readline()
                    continue
                said = json.loads(reply.read())
            if output:
                shown = json.loads(output)
                if "seq" in shown:  # each second of quiet before has taken a position too
                    said["seq"] = min(said["seq"], shown["seq"])
                assert said == shown
        assert made.total("conversions") == 1


@pytest.mark.server
def test_the_plugin_counts(server: ServerHouse, site: Path) -> None:
    row = server.plugin("purchases")
    assert (row["state"], row["isolation"], row["version"]) == ("active", "process", "0.1.0")
    for _ in range(3):
        server.post([{"event": "purchase"}, {"event": "purchase"}, {"event": "page_view"}])
    equals(lambda: server.total("purchases.purchases"), 6, "purchases.purchases")
    server.kill()
    server.start()
    server.post({"event": "purchase"})
    equals(lambda: server.total("purchases.purchases"), 7, "purchases.purchases after a kill")
    listed = cli(server, "plugins", "list", "--url", server.url)
    assert re.search(r"purchases +0\.1\.0 +active +process", listed)


@pytest.mark.server
def test_the_metric_manifest(server: ServerHouse) -> None:
    signups = [("ada", "pro"), ("ada", "pro"), ("bob", "pro"), ("cat", "free")]
    server.post([{"event": "signup", "userId": user, "properties": {"plan": plan}} for user, plan in signups])
    assert server.total("signups") == 2


@pytest.mark.server
def test_the_cohort(server: ServerHouse) -> None:
    def sold(user: str, *amounts: int) -> list[dict[str, Any]]:
        bought = [{"event": "purchase", "properties": {"revenue": amount, "plan": "pro"}} for amount in amounts]
        return [{**event, "userId": user} for event in [{"event": "product_view"}, *bought]]

    server.post([*sold("loyal", 21, 30), *sold("once", 50), *sold("cheap", 5, 50), *sold("back", 50, 50)])
    server.post({"event": "refund", "userId": "back"})
    typed = [c.words for c in commands(blocks(section("### Cohorts"))) if c.words[0] == "analytics"]
    listed, one, funnel = (cli(server, *words[1:], "--url", server.url, "--json") for words in typed)
    (row,) = json.loads(listed)["cohorts"]
    assert (row["people"], row["active"]) == (1, 1)
    manifest = yaml.safe_load(FILES["manifests/loyal-buyers.yaml"])
    assert json.loads(one)["definition"] == {"all": manifest["all"]}
    assert [step["users"] for step in json.loads(funnel)["data"]] == [1, 1]


@pytest.mark.server
def test_every_operation_that_is_named_is_there(server: ServerHouse) -> None:
    document = server.get("/api/v1/openapi.json")["paths"]
    named = set(re.findall(r"(GET|POST|DELETE) (/[\w/{}.-]+)", README))
    offered = {(method.upper(), path) for path, methods in document.items() for method in methods}
    assert named <= offered
    assert {(method, path) for method, path in offered if path.startswith("/api/v1/plugins/")} <= named
    statuses = {int(status) for row in table("answer") for status in re.findall(r"\d{3}", row[0])}
    assert statuses | {401, 403} == {int(status) for status in document["/api/v1/events"]["post"]["responses"]}
    analyses = {entry["name"] for entry in server.get("/api/v1/analyses")["analyses"]}
    (told,) = [row for row in table("what") if "POST /api/v1/analyses/{name}" in row[1]]
    assert set(quoted(told[0])) == analyses


@pytest.mark.server
def test_the_script_listens_to_what_is_sent(server: ServerHouse) -> None:
    (script,) = [block.text for block in BLOCKS if block.language == "js"]
    event, argument = re.findall(r'emitWithAck\("([\w:]+)", (\{.*?\})\)', script)[0]
    heard, members = re.findall(r'socket\.on\("([\w:]+)", \(\{ (.*?) \}\)', script)[0]

    async def scenario() -> None:
        async with socket_of(server) as client, stream_of(server, "metrics=page_views") as stream:
            assert (await client.call(event, yaml.safe_load(argument)))["ok"]
            await asyncio.to_thread(server.post, {"event": "page_view"})
            _, _, pushed = await client.next(heard, lambda m: m["metric"] == "page_views")
            assert set(members.split(", ")) == set(pushed)
            await stream.next(heard, lambda m: m["metric"] == "page_views")

    asyncio.run(scenario())


@pytest.mark.server
def test_the_import(server: ServerHouse, tmp_path: Path) -> None:
    (command,) = [c.words for c in commands(BLOCKS) if c.words[:2] == ["analytics", "import"]]
    file = tmp_path / command[2]
    properties = command[command.index("--properties") + 1].split(",")
    lines = [",".join(["user_id", "event", "timestamp", *properties, "other"])]
    lines += [",".join([f"u{n}", "clicked", f"2025-04-0{n}T10:00:00Z", *properties, "x"]) for n in range(1, 6)]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    for _ in range(2):  # the second time adds nothing
        cli(server, *command[1:], "--url", server.url, cwd=tmp_path)
        rows = server.history(events=["clicked"])
        assert [row["userId"] for row in rows] == ["u5", "u4", "u3", "u2", "u1"]
        assert all(row["properties"] == dict(zip(properties, properties, strict=True)) for row in rows)


@pytest.mark.server
def test_the_exports(server: ServerHouse, tmp_path: Path) -> None:
    times = ("2025-01-01T00:00:00Z", "2025-01-31T23:59:59Z", "2025-02-01T00:00:00Z")
    server.post([{"event": "exported", "messageId": at, "timestamp": at} for at in times])
    server.post([{"event": "purchase", "userId": f"u{n}", "properties": {"amount": n}} for n in (10, 11)])
    typed = [c.words[1:] for c in commands(BLOCKS) if c.words[:2] == ["analytics", "export"]]
    said = [cli(server, *words, "--url", server.url, cwd=tmp_path) for words in typed]
    assert said[0] == ""
    assert pq.read_table(tmp_path / "january.parquet")["messageId"].to_pylist() == list(times[:2])
    (row,) = map(json.loads, said[1].splitlines())
    assert row.keys() == {"timestamp", "userId", "properties.amount"}
    assert (row["userId"], row["properties.amount"]) == ("u11", 11)


def cli(server: ServerHouse, *arguments: str, cwd: Path = ROOT) -> str:
    environ: dict[str, Any] = {
        **server.environ,
        "ANALYTICS_MANIFESTS_DIR": str(server.manifests),
        "ANALYTICS_DATA_DIR": str(server.data),
        "PYTHONPATH": f"{ROOT}:{server.environ['PYTHONPATH']}",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "analytics_core.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_blocks_are_all_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"console", "python", "yaml", "toml", "js"}
    assert {b.path for b in BLOCKS if b.language in ("python", "yaml", "toml")} == set(FILES)
    assert {command.words[0] for command in commands(BLOCKS)} == {"curl", "make", "analytics"}
