"""A folder of installed plugins for the commands that look after them, and those commands, run in this process."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml
from click.testing import CliRunner, Result

from analytics_core import cli

NOBODY = ("--port", "1")
"""Options with which no server is asked: nothing can listen there without being root."""


class Site:
    """Distributions as pip leaves them, each with one plugin. Packages are called like their plugins."""

    def __init__(self, path: Path) -> None:
        self.path = path / "site"
        self.manifests = path / "manifests"
        self.path.mkdir()
        self.manifests.mkdir()

    def plugin(
        self, name: str, code: str = "", *, distribution: str = "", version: str = "1.0", **manifest: Any
    ) -> Path:
        """An installed plugin ``name`` with the class ``Plugin``; the folder of its package.

        ``manifest`` goes over a plugin.yaml with the hook ``process``; ``manifest=None`` leaves the file out.
        """
        package = f"{name}_{distribution}".replace("-", "_") if distribution else name.replace("-", "_")
        home = self.path / package
        home.mkdir()
        plain = "class Plugin:\n    @hookimpl\n    def process(self, batch): pass\n"
        (home / "__init__.py").write_text("from analytics_core import *\n" + (dedent(code) or plain), "utf-8")
        declared = {"kind": "plugin", "manifest": 1, "name": name, "entry": f"{package}:Plugin", "hooks": ["process"]}
        if manifest != {"manifest": None}:
            (home / "plugin.yaml").write_text(yaml.safe_dump(declared | manifest), "utf-8")
        self.distribution(distribution or f"dist-{name}", f"{name} = {package}:plugin.yaml", version=version)
        return home

    def distribution(
        self, name: str, entry: str, *, version: str = "1.0", group: str = "analytics_core.plugins"
    ) -> None:
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", "utf-8")

    def operator(self, name: str, **intent: Any) -> None:
        """A ``plugin-settings`` manifest."""
        told = {"kind": "plugin-settings", "name": name, **intent}
        (self.manifests / f"{name}.yaml").write_text(yaml.safe_dump(told), "utf-8")

    def run(self, command: str, *arguments: str, **environ: str) -> Result:
        """``analytics plugins COMMAND`` with what is installed here besides what the tests run with."""
        before = list(sys.path)
        sys.path.insert(0, str(self.path))
        told = {name: None for name in os.environ if name.startswith(("ANALYTICS_", "PLUGINS_", "COLUMNS"))}
        runner = CliRunner(env={**told, "ANALYTICS_MANIFESTS_DIR": str(self.manifests), **environ})
        try:
            return runner.invoke(cli.main, ["plugins", command, *arguments])
        finally:
            sys.path[:] = before

    def json(self, command: str, *arguments: str, **environ: str) -> Any:
        """What the command says with ``--json``."""
        return json.loads(self.run(command, *arguments, "--json", **environ).stdout)


@contextmanager
def answering(reply: Callable[[str, dict[str, str]], tuple[int, bytes]]) -> Iterator[str]:
    """The port of a server that answers a request line, such as ``GET /path``, and its headers with a status and a
    body."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, body = reply(f"{self.command} {self.path}", dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *arguments: Any) -> None:
            """Keep the test's output clean."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield str(running.server_port)
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
