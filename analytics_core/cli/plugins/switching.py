"""What ``analytics plugins enable`` and ``analytics plugins disable`` share: the operator's word, and its effect."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import click
import msgspec
from msgspec import Struct

from analytics_core.cli.asking import RefusedError, Server, show_json
from analytics_core.cli.plugins.asking import UnknownPluginError
from analytics_core.errors import AnalyticsError
from analytics_core.host.examining.judging import RUNS, judge, named
from analytics_core.host.health import BEGINNING
from analytics_core.host.intent import set_enabled
from analytics_core.manifest import read_deployment

_SECONDS: Final = 30.0
_PATIENCE: Final = 15.0
"""How long a running server has to take the change in."""
_STEP: Final = 0.1


class Outcome(Struct, kw_only=True):
    """``state`` and ``reason`` are the plugin's as ``source`` sees it: a server by its address, or ``installed`` for
    one that starts now; of one that is not installed the state is empty. ``note`` says what stands between the
    operator's word and its effect."""

    name: str
    enabled: bool
    changed: bool
    file: str | None
    state: str = ""
    reason: str = ""
    source: str = "installed"
    note: str = ""

    @property
    def arrived(self) -> bool:
        """Whether the state is what was wanted, or is to be at the next start."""
        return self.state in RUNS if self.enabled else self.state in ("", "disabled")


def switch(name: str, enabled: bool, server: Server, *, as_json: bool, reason: str = "") -> int:
    """Do it, show what became of it, and give the exit code: 0 when it came out as the operator wants it."""
    done = _at_server(name, enabled, server, reason) if server.told else _here(name, enabled, server, reason)
    if not done.state:
        done.reason = "it is not installed"
    if as_json:
        show_json(done)
    else:
        _show(done)
    return 0 if done.arrived else 1


def _at_server(name: str, enabled: bool, server: Server, reason: str) -> Outcome:
    """In the manifests of a server that need not be on this machine."""
    known = [row["name"] for row in server.plugins()]
    if name not in known:
        raise UnknownPluginError(name, known)
    path = f"/api/v1/plugins/{name}/{'enable' if enabled else 'disable'}"
    told = server.ask("POST", path, _SECONDS, **({"reason": reason} if reason else {}))
    done = Outcome(name=name, enabled=enabled, changed=told["changed"], file=told["file"], source=server.url)
    if told.get("refused"):
        done.state = (told["plugin"] or {}).get("state", "")
        done.note = f"the server holds to what it was told before: {told['refused']}"
    else:
        _await(done, server)
    return done


def _here(name: str, enabled: bool, server: Server, reason: str) -> Outcome:
    """In the manifests of this machine, which a server that runs here takes in by itself."""
    name = _exact(name, server)
    switched = set_enabled(name, enabled, server.here, os.environ, reason=reason)
    done = msgspec.convert(switched, Outcome, from_attributes=True)
    choice = next((each for each in judge(server.here, os.environ) if each.name == name), None)
    if choice is not None:
        done.state, done.reason = choice.state, choice.reason
    if enabled and done.state == "disabled":
        return done  # something else keeps it out, and a server would say the same
    try:
        runs = server.plugins_if_any() is not None
        if runs:
            _await(done, server)
        elif done.changed:
            done.note = f"no server answers at {server.url}: it takes effect at the next start"
    except AnalyticsError as error:
        done.note = f"whether a server has taken it in is not known: {error}"
    return done


def _exact(name: str, server: Server) -> str:
    """The name of the plugin; a distribution with one plugin may be named too."""
    choices = judge(server.here, os.environ)
    found = sorted({choice.name for choice in named(name, choices)})
    declared = read_deployment(server.here.manifests_dir, os.environ).plugins
    if not found and name in declared:
        return name
    if not found:
        raise UnknownPluginError(name, {*(choice.name for choice in choices), *declared})
    if len(found) > 1:
        raise RefusedError(f"{name!r} has several plugins; name one: {', '.join(found)}")
    return found[0]


def _await(done: Outcome, server: Server) -> None:
    """Until the server sees the plugin as the operator wants it, or sees why it cannot be."""
    deadline = time.monotonic() + _PATIENCE
    while not _settled(row := _row(done.name, server), done.enabled):
        if time.monotonic() > deadline:
            done.note = f"the server at {server.url} has not come to that within {_PATIENCE:g} s{_advice(done, server)}"
            break
        time.sleep(_STEP)
    done.source = server.url
    done.state, done.reason = (row["state"], row.get("reason") or "") if row is not None else ("", "")


def _advice(done: Outcome, server: Server) -> str:
    if server.told:
        return ""
    return f"; does it read {done.file} and watch it (PLUGINS_WATCH)? --url {server.url} lets it do all by itself"


def _row(name: str, server: Server) -> dict[str, Any] | None:
    return next((row for row in server.plugins() if row["name"] == name), None)


def _settled(row: dict[str, Any] | None, enabled: bool) -> bool:
    if row is None:  # asked for no more, and not installed
        return not enabled
    return row["state"] not in {*BEGINNING, "disabled"} if enabled else row["state"] == "disabled"


def _show(done: Outcome) -> None:
    word = "enabled" if done.enabled else "disabled"
    where = f" in {done.file}" if done.file else ", as no manifest says otherwise"
    click.echo(f"{done.name} is {word}{'' if done.changed else ' already'}{where}")
    seen = f"as {done.source} sees it" if done.source != "installed" else "as it is installed"
    if told := ": ".join(filter(None, (done.state, done.reason))):
        click.echo(f"  {told} ({seen})")
    if done.note:
        click.echo(f"  {done.note}")
