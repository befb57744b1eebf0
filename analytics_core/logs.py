"""What the process says about itself: structlog, set up once by the app or the command line and nowhere else."""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from analytics_core.config import Logging

_SECRET: Final = re.compile(
    r"token|secret|password|passwd|authorization|credential|cookie|(^|[_-])keys?$|api_?key", re.I
)
_MASK: Final = "***"
_FILE_BYTES: Final = 50 * 1024 * 1024
_FILES: Final = 5
_DEPTH: Final = 6


def configure_logging(settings: Logging, stream: TextIO | None = None) -> None:
    """Send every log line, the standard library's too, to ``stream`` (standard error when None).

    A terminal gets readable lines, anything else one JSON object a line. ``settings.dir`` also gets ``analytics.log``
    as JSON, rotated at 50 MB, five kept. Members whose name says that they are secret are masked, at any depth.
    May be called again: the last call holds.
    """
    target = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[settings.level]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(target)]
    # The plain traceback: the rich one shows local variables, secrets among them.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    handlers[0].setFormatter(_formatter(shared, console if target.isatty() else None))
    if settings.dir is not None:
        settings.dir.mkdir(parents=True, exist_ok=True)
        rotating = logging.handlers.RotatingFileHandler(
            settings.dir / "analytics.log", maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8"
        )
        rotating.setFormatter(_formatter(shared, None))
        handlers.append(rotating)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A structlog processor: values under a secret-sounding name become ``***``."""
    return {name: _masked(name, value, _DEPTH) for name, value in event.items()}


def _masked(name: object, value: Any, depth: int) -> Any:
    if isinstance(name, str) and _SECRET.search(name) and value is not None:
        return _MASK
    if depth and isinstance(value, Mapping):
        return {inner: _masked(inner, held, depth - 1) for inner, held in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_masked(None, held, depth - 1) for held in value]
    return value


def _formatter(shared: list[Processor], console: Processor | None) -> logging.Formatter:
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console is None:
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        rendering.append(console)
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering)
