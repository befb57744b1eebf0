"""``analytics plugins replay``."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from analytics_core.cli.asking import RefusedError, Server, asking_options, show_json
from analytics_core.cli.plugins.asking import UnknownPluginError
from analytics_core.errors import AnalyticsError, ServerRefusedError
from analytics_core.host.replaying.view import ReplayView
from analytics_core.state.side import Change, Difference

_SECONDS: Final = 10.0
_SWITCH_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.3
_WAITING: Final = frozenset({"replaying", "ready", "switching"})
_UNPROCESSABLE: Final = 422
_KINDS: Final = {"pattern": "patterns", "insight": "insights"}


@click.command("replay")
@click.argument("name")
@click.option("--since", help="Rebuild from this UTC day on: 30d, 12w, a date or an ISO 8601 time; else all there is.")
@click.option("--yes", is_flag=True, help="Switch without asking.")
@click.option("--discard", is_flag=True, help="Drop the replay that is under way or waits for its decision.")
@asking_options("The replay with its difference as JSON, when that is known; nothing is asked.")
@click.pass_context
def command(
    ctx: click.Context, name: str, since: str | None, yes: bool, discard: bool, as_json: bool, server: Server
) -> None:
    """Rebuild what the running plugin NAME has found, from history with its present code, and show the difference.

    The server does it beside the running plugin, whose outputs stay as they are. After a switch the plugin goes on with
    the outputs and the state that were rebuilt. Without an answer, where nobody can be asked, with --json or after
    Ctrl-C, the replay goes on and waits on the server for a day: the same command takes it up again. The end of the
    server drops it.

    With --json the command ends when the difference is known, and says which of these 'state' it is: 'ready' waits on
    the server, 'discarded' had nothing to switch to ('reason' says so); with --yes it is 'switched' to at once.

    It takes the key of an operator. The exit code is 1 when the replay cannot begin, or it or the switch has failed:
    nothing is changed then. It is 2 for what cannot be asked for.
    """
    if discard and (yes or since is not None):
        raise RefusedError("--discard drops a replay; it goes with neither --yes nor --since")
    replays = Remote(server, name)
    view = replays.waiting()
    if discard:
        if view is None:
            raise RefusedError(f"no replay of {name} is under way")
        view = replays.discard(view)
    else:
        view = _begun(replays, view, since)
        try:
            view = replays.followed(view)
            view = _decided(replays, view, yes=yes, ask=not as_json and interactive(), quiet=as_json)
        except (KeyboardInterrupt, click.Abort):
            click.echo(
                f"the replay goes on without you; to drop it: analytics plugins replay {name} --discard", err=True
            )
            raise
    if as_json:
        show_json(view)
    else:
        _show_end(view)
    ctx.exit(1 if view.state in ("failed", "stale") else 0)


def interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Remote:
    """The replays of one plugin on a server."""

    def __init__(self, server: Server, name: str) -> None:
        """:raises UnknownPluginError: for a plugin that the server does not have."""
        known = [row["name"] for row in server.plugins()]
        if name not in known:
            raise UnknownPluginError(name, known)
        self._server = server
        self._path = f"/api/v1/plugins/{name}/replays"

    def waiting(self) -> ReplayView | None:
        """The one that is under way or waits for its decision."""
        latest = self._latest()
        return latest if latest is not None and latest.state in _WAITING else None

    def begin(self, since: str | None) -> ReplayView:
        """:raises RefusedError: for a ``since`` that the server does not understand."""
        try:
            return self._read(self._server.ask("POST", self._path, _SECONDS, body={"since": since}))
        except ServerRefusedError as error:
            if error.answered == _UNPROCESSABLE:
                raise RefusedError(str(error)) from error
            raise

    def switch(self, view: ReplayView) -> ReplayView:
        return self._read(self._server.ask("POST", f"{self._path}/{view.id}/switch", _SWITCH_SECONDS))

    def discard(self, view: ReplayView) -> ReplayView:
        return self._read(self._server.ask("DELETE", f"{self._path}/{view.id}", _SECONDS))

    def followed(self, view: ReplayView) -> ReplayView:
        """The replay when history is folded, or as it ended before. What it waits for is a line for each change.

        :raises AnalyticsError: when the server no longer has it.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(view.plugin, total=1.0)
            told = ""
            while view.state in ("replaying", "switching"):
                if view.reason != told:
                    told = view.reason
                    line = f"{view.plugin}: {f'the replay waits: {told}' if told else 'the replay goes on'}"
                    console.print(line, soft_wrap=True, markup=False, highlight=False)
                bar.update(task, completed=view.progress, description=f"{view.plugin}: {view.events:,} events")
                time.sleep(_LOOK_SECONDS)
                view = self._again(view)
        return view

    def _again(self, view: ReplayView) -> ReplayView:
        latest = self._latest()
        if latest is None or latest.id != view.id:
            what = "has another one now" if latest is not None else "was started anew"
            raise AnalyticsError(
                f"{self._server.url} {what}: the replay of {view.plugin} is gone, and nothing has changed"
            )
        return latest

    def _latest(self) -> ReplayView | None:
        replays = self._server.ask("GET", self._path, _SECONDS).get("replays")
        return self._read(replays[-1]) if replays else None

    def _read(self, answer: Any) -> ReplayView:
        try:
            return msgspec.convert(answer, ReplayView)
        except msgspec.MsgspecError as error:
            raise AnalyticsError(f"what {self._server.url} says of a replay cannot be read: {error}") from error


def _begun(replays: Remote, waiting: ReplayView | None, since: str | None) -> ReplayView:
    if waiting is None:
        return replays.begin(since)
    if since is not None:
        raise RefusedError(
            f"a replay of {waiting.plugin} is {waiting.state}; drop it with --discard, or go on without --since"
        )
    click.echo(f"taking up the replay that began at {waiting.started_at:%Y-%m-%d %H:%M} UTC", err=True)
    return waiting


def _decided(replays: Remote, view: ReplayView, *, yes: bool, ask: bool, quiet: bool) -> ReplayView:
    if view.state != "ready" or view.difference is None:
        return view
    if not quiet:
        _show(view, view.difference)
    if view.difference.equal and not yes:
        return replays.discard(view)
    if yes or (ask and click.confirm("switch?")):
        return replays.switch(view)
    return replays.discard(view) if ask else view


def _show_end(view: ReplayView) -> None:
    if view.state == "ready":
        click.echo(f"nothing is changed; to switch: analytics plugins replay {view.plugin} --yes")
    elif view.state == "switched":
        at = "" if view.receipt is None else f", from position {view.receipt.position} on"
        click.echo(f"switched: generation {view.generation} runs{at}")
    else:
        why = f": {view.reason}" if view.reason else ""
        click.echo(f"{view.plugin}: the replay is {view.state}{why}; nothing has changed")


def _show(view: ReplayView, difference: Difference) -> None:
    whole = "all that is kept" if view.since is None else f"windows from {view.since:%Y-%m-%d} on"
    click.echo(
        f"{view.plugin}: {view.events:,} events folded anew, {whole}, compared at position {difference.position}"
    )
    if view.note:
        click.echo(view.note)
    elif view.kept_from is not None:
        click.echo(f"history begins at {view.kept_from:%Y-%m-%d %H:%M:%S} UTC")
    if difference.equal:
        click.echo(f"equal: none of {sum(each.equal for each in difference.counts):,} outputs differs")
        return
    console = Console()
    console.print(_counts(difference))
    if difference.sample:
        console.print(_sample(difference.sample))


def _counts(difference: Difference) -> Table:
    table = Table("output", *(["equal", "changed", "only old", "only new", "largest difference"]), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in difference.counts:
        figures = (each.equal, each.changed, each.only_old, each.only_new)
        largest = "" if each.same or each.what != "metric" else f"{each.largest:,.6g}"
        table.add_row(_KINDS.get(each.what, each.name), *(f"{figure:,}" for figure in figures), largest)
    return table


def _sample(changes: list[Change]) -> Table:
    table = Table("metric", "window", "tenant", "labels", "old", "new", title="what differs most", box=None)
    for each in changes:
        labels = " ".join(f"{name}={value}" for name, value in sorted(each.labels.items()))
        window = f"{each.start:%Y-%m-%d %H:%M} + {each.seconds} s"
        table.add_row(each.name, window, each.tenant, labels, _figure(each.old), _figure(each.new))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"
