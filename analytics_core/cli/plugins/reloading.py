"""``analytics plugins reload``."""

from __future__ import annotations

from typing import Any, Final

import click

from analytics_core.cli.asking import Server, asking_options, show_json
from analytics_core.cli.plugins.asking import UnknownPluginError

_SECONDS: Final = 90.0


@click.command("reload")
@click.argument("name")
@asking_options("The receipt as JSON.")
@click.pass_context
def command(ctx: click.Context, name: str, as_json: bool, server: Server) -> None:
    """Make a new generation of the running plugin NAME, changed or not, and hand it the state.

    The server does this by itself when the plugin's sources or settings change. It takes the key of an operator. The
    exit code is 0 when the new generation runs, 1 when it does not, 2 when nothing has this name.
    """
    known = [row["name"] for row in server.plugins()]
    if name not in known:
        raise UnknownPluginError(name, known)
    receipt = server.ask("POST", f"/api/v1/plugins/{name}/reload", _SECONDS)
    if as_json:
        show_json(receipt)
    else:
        _show(receipt)
    ctx.exit(0 if receipt["outcome"] == "active" else 1)


def _show(receipt: dict[str, Any]) -> None:
    before, after, reason = receipt["before"], receipt["after"], receipt["reason"]
    became = {
        "active": f"generation {after} runs: {reason}"
        if reason
        else f"generation {after} has taken over from {before}",
        "failed": f"generation {after} does not run, and none did before: {reason}",
        "superseded": f"generation {after} was passed over: {reason}",
    }
    kept = f"generation {before} runs on; {'the next' if after == before else after} was not taken in: {reason}"
    click.echo(f"{receipt['plugin']}: {became.get(receipt['outcome'], kept)}")
    if receipt["outcome"] != "active":
        return
    if receipt["seconds"]:
        phases = ", ".join(f"{phase} {1000 * seconds:.0f} ms" for phase, seconds in receipt["seconds"].items())
        lost = f"{receipt['events_lost']} events were lost" if receipt["events_lost"] else "no event was lost"
        handed = f" to hand over {receipt['state_bytes'] / 1e6:.1f} MB" if receipt["state_bytes"] else ""
        click.echo(f"  {phases}; its lane stood still for {1000 * receipt['pause']:.1f} ms{handed}; {lost}")
    for survivor in receipt["survivors"]:
        click.echo(f"  still alive of generation {before}: {survivor}")
