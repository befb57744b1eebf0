"""Options that several commands share, and the settings that they give."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from analytics_core.config import Settings, load_settings
from analytics_core.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])
_MANIFESTS: Final = Path("manifests")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


manifests_option: Final = click.option(
    "--manifests",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ANALYTICS_MANIFESTS_DIR",
    show_envvar=True,
    show_default=str(_MANIFESTS),
    help="Where the manifests are: a folder that exists, unless it is the default.",
)
data_option: Final = click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where data is kept; else ANALYTICS_DATA_DIR."
)
address_options: Final = _all(
    click.option("--host", help="Address of the server; else ANALYTICS_HOST."),
    click.option("--port", type=click.IntRange(0, 65_535), help="Port of the server; else ANALYTICS_PORT or PORT."),
)
key_option: Final = click.option(
    "--api-key",
    default="",
    envvar="ANALYTICS_API_KEY",
    show_envvar=True,
    help="Key or token, when the server has auth.",
)
server_options: Final = _all(
    address_options,
    data_option,
    manifests_option,
    click.option("--insecure", is_flag=True, default=None, help="Listen beyond this machine although auth is off."),
    click.option("--log-level", type=click.Choice(LEVELS, case_sensitive=False), help="Else LOG_LEVEL."),
)


def settings(
    manifests: Path | None,
    *,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
    insecure: bool | None = None,
    log_level: str | None = None,
    locked: bool | None = None,
    safe_mode: bool | None = None,
) -> Settings:
    """The settings of the manifests and the environment, with what was told on the command line over them.

    :raises ConfigError: naming the file and key, or the option, or a folder of ``manifests`` that does not exist: what
        the operator has disabled there would begin to run.
    """
    if manifests is not None and not manifests.exists():
        raise ConfigError(
            str(manifests), "does not exist; the folder that --manifests or ANALYTICS_MANIFESTS_DIR names must exist"
        )
    return load_settings(
        manifests or _MANIFESTS,
        os.environ,
        server={"host": host, "port": port, "insecure": insecure},
        storage={"data_dir": data_dir},
        logging={"level": log_level},
        plugins={"locked": locked, "safe_mode": safe_mode},
    )


def url_of(settings: Settings) -> str:
    """Where this machine reaches the configured server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def address(url: str, where: str = "--url") -> str:
    """``url`` without a slash at its end, when it is the address of a server.

    :raises ConfigError: naming ``where`` when it is none: http or https, a host, at most a port and a path.
    """
    try:
        parts = urlsplit(url)
        parts.port, (parts.hostname or "").encode("idna")  # both refuse what is none
        plain = url.isprintable() and " " not in url and parts.path.isascii() and "@" not in parts.netloc
        good = parts.scheme in ("http", "https") and parts.hostname and plain and not (parts.query or parts.fragment)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(where, f"{url!r} is no address of a server; valid is http://host:port")
    return url.rstrip("/")
