"""What the commands about plugins share: the running server's own view, and how a name that nobody has is refused."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click
import msgspec

from analytics_core.cli.options import address_options, key_option, manifests_option
from analytics_core.errors import AnalyticsError, ConfigError, NoServerError, ServerRefusedError, near

Command = TypeVar("Command", bound=Callable[..., Any])
_SECONDS: Final = 2.0


def asking_options(json_help: str) -> Callable[[Command], Command]:
    """``--json``, and which server is asked."""

    def add(command: Command) -> Command:
        told = (
            click.option("--json", "as_json", is_flag=True, help=json_help),
            click.option("--url", help="Ask this server; else the configured one, if it runs."),
            address_options,
            key_option,
            manifests_option,
        )
        for option in reversed(told):
            command = option(command)
        return command

    return add


def live(url: str, api_key: str) -> list[dict[str, Any]]:
    """The server's own view, in the shape of GET /api/v1/plugins.

    :raises NoServerError: when it does not answer within two seconds.
    """
    found = ask(url, api_key, "GET", "/api/v1/plugins", _SECONDS)
    try:
        return msgspec.convert(found["plugins"], list[dict[str, Any]])
    except (msgspec.MsgspecError, KeyError) as error:
        raise AnalyticsError(f"what answers at {url} is no analytics server: {error}") from error


def ask(url: str, api_key: str, method: str, path: str, seconds: float) -> dict[str, Any]:
    """The JSON object that the server answers to a request without a body.

    :raises NoServerError: when it does not answer in ``seconds``.
    :raises ServerRefusedError: with what it says of any other status than 200.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("--url", f"{url!r} is no address; valid is http://host:port")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=seconds)
    try:
        connection.request(method, f"{parts.path}{path}", headers={"X-API-Key": api_key} if api_key else {})
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoServerError(url, getattr(error, "strerror", None) or str(error)) from error
    finally:
        connection.close()
    if status != 200:
        advice = "name a key with --api-key or ANALYTICS_API_KEY" if status in (401, 403) else ""
        raise ServerRefusedError(url, status, body[:200].decode(errors="replace"), advice)
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise AnalyticsError(f"what answers at {url} is no analytics server: {error}") from error


def live_if_any(url: str, api_key: str, *, told: bool) -> list[dict[str, Any]] | None:
    """As `live`; None when nothing answers at an address that the operator has not ``told``."""
    try:
        return live(url, api_key)
    except NoServerError:
        if told:
            raise
        return None


def show_json(value: Any) -> None:
    """``value`` as indented JSON; paths become text."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode())


class RefusedError(click.ClickException):
    """What was typed cannot be done: one line, as the core's errors look, and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"analytics: {self.message}", file=file, err=True)


class UnknownPluginError(RefusedError):
    """Nothing that is installed or running has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no plugin is named {name!r}{near(name, known) or '; none is installed'}")
