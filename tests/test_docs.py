"""README and CHANGELOG are true: their blocks are run, and what they name exists."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from analytics_core.cli import _COMMANDS
from tests.flow.server_house import ROOT, ServerHouse, equals, house, socket_of, stream_of

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PLACEHOLDER = "localhost:4000"


class Block(NamedTuple):
    language: str
    text: str

    @property
    def path(self) -> str:
        """The file that its first line names in a comment, or nothing."""
        found = re.match(r"# ([\w./-]+)\n", self.text)
        return found[1] if found else ""


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]
FILES = {block.path: block.text for block in BLOCKS if block.path}
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    words: list[str]
    output: str


def commands() -> Iterator[Command]:
    """What is typed after ``$`` in console blocks, with the lines that are shown for it."""
    for block in BLOCKS:
        if block.language != "console":
            continue
        for typed in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = typed.splitlines(keepends=True)
            for count in range(1, len(lines) + 1):
                try:
                    words = shlex.split("".join(lines[:count]), comments=True)
                except ValueError:  # a quotation goes on in the next line
                    continue
                yield Command(words, "".join(lines[count:]).strip())
                break
            else:
                raise AssertionError(f"no end of the command: {typed}")


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
    spoken = [" ".join(command.words) for command in commands()] + quoted(PROSE) + quoted(CHANGELOG)
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


def curl(words: list[str], server: ServerHouse) -> HTTPResponse:
    """The request that curl would send. An option that is not known here fails."""
    url, headers, body = "", {}, None
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-s" | "-N":
                pass
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest).encode()
            case _:
                assert not word.startswith("-"), word
                url = word
    assert PLACEHOLDER in url
    url = "http://" + url.removeprefix("http://").replace(PLACEHOLDER, f"127.0.0.1:{server.port}")
    reply: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)
    return reply


@pytest.mark.server
def test_the_curl_examples(tmp_path: Path) -> None:
    examples = [command for command in commands() if command.words[0] == "curl"]
    assert len(examples) >= 4
    with house(tmp_path) as made:  # of its own: the first example says which position it is given
        made.start()
        for words, output in examples:
            with curl(words, made) as reply:
                assert reply.status in (200, 202), words
                if reply.headers["Content-Type"].startswith("text/event-stream"):
                    assert reply.readline()
                    continue
                said = json.loads(reply.read())
            if output:
                assert said == json.loads(output)
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
def test_every_operation_that_is_named_is_there(server: ServerHouse) -> None:
    document = server.get("/api/v1/openapi.json")["paths"]
    named = re.findall(r"(GET|POST) (/[\w/{}.-]+)", README)
    assert len(named) > 8
    for method, path in named:
        assert method.lower() in document.get(path, {}), f"{method} {path}"
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
    (command,) = [c.words for c in commands() if c.words[:2] == ["analytics", "import"]]
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
    assert {command.words[0] for command in commands()} == {"curl", "make", "analytics"}
