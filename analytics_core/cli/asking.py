"""What commands share that ask a running server: which one, its answers, and how they are refused."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import click
import msgspec
from msgspec import Struct

from analytics_core.cli.options import address, address_options, key_option, manifests_option, settings, url_of
from analytics_core.config import Settings
from analytics_core.errors import AnalyticsError, ConfigError, NoServerError, ServerRefusedError

_SECONDS: Final = 2.0
_LISTING: Final = "/api/v1/plugins"
"""What every analytics server has."""
MISTAKES: Final = frozenset({400, 404, 422})
"""Statuses that say that the question is wrong."""
_SHOWN: Final = 200
_PIECE: Final = 1 << 16
_MOST_REASON: Final = 2000
_KEY_OPTION: Final = "with --api-key or ANALYTICS_API_KEY"


class Server:
    """The server that a command asks, and the settings of this machine; both are read when they are needed.

    ``told``: the operator has named its address, so that it has to answer.
    """

    def __init__(
        self, *, url: str | None, host: str | None, port: int | None, api_key: str, manifests: Path | None
    ) -> None:
        self.told = url is not None
        self._url = url or ""
        self._host = host
        self._port = port
        self._key = api_key
        self._manifests = manifests

    @cached_property
    def here(self) -> Settings:
        """:raises ConfigError: naming the file and key, or the option."""
        return settings(self._manifests, host=self._host, port=self._port)

    @cached_property
    def url(self) -> str:
        """:raises ConfigError: for what is no address."""
        return address(self._url) if self.told else address(url_of(self.here), "server.host")

    def plugins(self) -> list[dict[str, Any]]:
        """The server's own view, in the shape of GET /api/v1/plugins. Raises as `ask` does."""
        found = self.ask("GET", _LISTING, _SECONDS)
        try:
            return msgspec.convert(found, _Listing).plugins
        except msgspec.MsgspecError as error:
            raise self._foreign(error) from error

    def plugins_if_any(self) -> list[dict[str, Any]] | None:
        """As `plugins`; None when nothing answers at an address that the operator has not told."""
        try:
            return self.plugins()
        except NoServerError:
            if self.told:
                raise
            return None

    def ask(self, method: str, path: str, seconds: float, *, body: Any = None, **query: str) -> dict[str, Any]:
        """The JSON object that the server answers to a request; ``body`` goes with it as JSON.

        :raises ConfigError: for an address or a key that cannot be one.
        :raises NoServerError: when it does not answer in ``seconds``.
        :raises ServerRefusedError: with what it says of a status beyond 299.
        """
        where = f"{quote(path)}{'?' if query else ''}{urlencode(query)}"
        sent = None if body is None else msgspec.json.encode(body)
        with self._answered(method, where, seconds, sent) as response:
            answer = response.read()
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise self._foreign(error) from error

    def stream(
        self, path: str, seconds: float, heed: Callable[[Mapping[str, str]], None] = lambda _: None
    ) -> Iterator[bytes]:
        """What the server answers to a GET of the quoted ``path``, as it comes, at least something every ``seconds``.
        ``heed`` gets the headers first. Raises as `ask`, also when the answer breaks off."""
        with self._answered("GET", path, seconds) as response:
            heed(dict(response.headers))
            while some := response.read1(_PIECE):
                yield some

    @contextmanager
    def _answered(
        self, method: str, where: str, seconds: float, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, still to be read."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.request(method, f"{parts.path}{where}", body, self._headers())
            response = connection.getresponse()
            if not 200 <= response.status < 300:
                advice = self._advice(response.status, where)
                detail, problem = _said(response.read())
                raise ServerRefusedError(self.url, response.status, detail, advice, problem)
            yield response
        except TimeoutError as error:
            raise NoServerError(self.url, f"nothing came within {seconds:g} s") from error
        except OSError as error:
            raise NoServerError(self.url, error.strerror or str(error)) from error
        except http.client.IncompleteRead as error:
            raise NoServerError(self.url, "its answer broke off") from error
        except http.client.HTTPException as error:
            raise self._foreign(error) from error
        finally:
            connection.close()

    def _headers(self) -> dict[str, bytes]:
        if not self._key.isprintable():
            raise ConfigError("--api-key", f"has characters that no key has; name it in one line {_KEY_OPTION}")
        return {"X-API-Key": self._key.encode()} if self._key else {}

    def _advice(self, status: int, path: str) -> str:
        known = "one that the server knows" if self._key else "a key"
        return {
            401: f"name {known} {_KEY_OPTION}",
            403: f"name the key of an operator {_KEY_OPTION}",
            404: "name the address of an analytics server with --url" if path == _LISTING else "",
        }.get(status, "")

    def _foreign(self, error: Exception) -> AnalyticsError:
        why = _one_line(str(error)) or type(error).__name__
        return AnalyticsError(f"what answers at {self.url} is no analytics server ({why}); name one with --url")


def asking_options(json_help: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--json``, and which server is asked: the command gets ``as_json`` and ``server``, a `Server`. A command whose
    output is no table has no ``--json``: without ``json_help`` there is none."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def asking(
            *given: Any,
            url: str | None,
            host: str | None,
            port: int | None,
            api_key: str,
            manifests: Path | None,
            **told: Any,
        ) -> Any:
            server = Server(url=url, host=host, port=port, api_key=api_key, manifests=manifests)
            return command(*given, server=server, **told)

        options = (
            *((click.option("--json", "as_json", is_flag=True, help=json_help),) if json_help else ()),
            click.option("--url", help="Ask this server; else the configured one, if it runs."),
            address_options,
            key_option,
            manifests_option,
        )
        for option in reversed(options):
            asking = option(asking)
        return asking

    return add


class _Listing(Struct):
    plugins: list[dict[str, Any]]


class _Refusal(Struct):
    """What the server says when it refuses: a problem of RFC 9457."""

    title: str = ""
    detail: str = ""
    type: str = ""


def _said(body: bytes) -> tuple[str, str]:
    """A refusal in one line, a whole reason or the begin of what is none, and the type of the problem."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except msgspec.MsgspecError:
        return _one_line(body.decode(errors="replace")), ""
    return _one_line(refusal.detail or refusal.title, _MOST_REASON), refusal.type


def _one_line(text: str, most: int = _SHOWN) -> str:
    return " ".join(text.split())[:most]


def show_json(value: Any) -> None:
    """``value`` as indented JSON; paths become text."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode())


class RefusedError(click.ClickException):
    """What was typed cannot be done: one line, as the core's errors look, and exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"analytics: {self.message}", file=file, err=True)
