"""Where in a plugin's own code something was raised, in this process or in that of the plugin."""

from __future__ import annotations

import re
import traceback
from typing import Final

from analytics_core.errors import AnalyticsError, HookFailedError, HookTimeoutError

_GENERATION: Final = re.compile(r"[^.]*__g\d+(\.|$)")
"""The names of the modules that a generation is loaded as."""
_MOST: Final = 20_000
"""Characters of a trace that crosses: its end says most."""


class RemoteError(Exception):
    """The cause of a failure in another process: its trace as text, and ``line`` as `line_of` gave it there."""

    def __init__(self, trace: str, line: str) -> None:
        super().__init__(f"\n{trace}")
        self.line = line


def cause_of(error: BaseException) -> BaseException | None:
    """``error``, where its trace says more than its text: in which line of the plugin it arose."""
    told = isinstance(error, AnalyticsError) and error.__cause__ is None
    return None if told or isinstance(error, HookTimeoutError) else error


def text_of(error: BaseException) -> str:
    """The trace of what `cause_of` gives, without the host's word for it; empty for none."""
    traced = cause_of(error)
    return "".join(traceback.format_exception(traced.__cause__ or traced))[-_MOST:] if traced is not None else ""


def line_of(error: BaseException) -> str:
    """The innermost line of the plugin's own code in which its hook failed: ``<file>, line 3``; empty when unknown."""
    if not isinstance(error, HookFailedError) or error.__cause__ is None:
        return ""
    if isinstance(error.__cause__, RemoteError):
        return error.__cause__.line
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__cause__.__traceback__)
        if _GENERATION.match(frame.f_globals.get("__name__", ""))
    ]
    return f"{own[-1][0]}, line {own[-1][1]}" if own else ""
