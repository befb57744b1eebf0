"""A body that is made while it is sent: at the pace of the client, and broken off where it cannot be whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

import structlog
from aiohttp import web

from analytics_core.errors import AnalyticsError

STALLED_SECONDS: Final = 300.0
"""A client that takes nothing for so long holds up what the stream reads from: it is cut off."""
_log = structlog.get_logger(__name__)


async def stream(request: web.Request, chunks: Iterator[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with ``chunks``, each made on a thread once the socket has taken the one before.

    What fails before the first chunk is refused as any request. What fails later breaks the connection off without the
    end that chunked encoding has, so that no client takes a part for the whole; the log says why.
    """
    first = await asyncio.to_thread(next, chunks, None)
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        chunk = first
        while chunk is not None:
            if chunk:
                async with asyncio.timeout(STALLED_SECONDS):
                    await response.write(chunk)
            chunk = await asyncio.to_thread(next, chunks, None)
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client went: it wants no more
    except TimeoutError:
        _break_off(request, f"the client took nothing for {STALLED_SECONDS:g} s")
    except AnalyticsError as error:
        _break_off(request, str(error))
    return response


def _break_off(request: web.Request, reason: str) -> None:
    _log.warning("stream_broken_off", path=request.path, reason=reason)
    if request.transport is not None:
        request.transport.abort()
