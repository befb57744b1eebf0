"""What differs between two runs of a plugin, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from analytics_core.testing.running import Outputs, Subject

_SHOWN: Final = 300
"""Characters of one record in a message: a sketch alone may have thousands."""
_json = msgspec.json.Encoder(order="deterministic")


def same(expected: Subject, got: Subject, how: str, other: str, *, states: bool = True) -> None:
    """Compare outputs, and with ``states`` what is exported. ``other`` says in a word how ``expected`` was run.

    :raises AssertionError: with ``how`` and the first difference.
    """
    same_outputs(expected.outputs, got.outputs, how, other)
    if states:
        same_state(expected.state(), got.state(), how, other)


def same_outputs(expected: Outputs, got: Outputs, how: str, other: str) -> None:
    """:raises AssertionError: with ``how`` and the first record that differs."""
    for difference in differences(expected, got, other):
        raise AssertionError(f"{how}: {difference}")


def same_state(expected: Any, got: Any, how: str, other: str) -> None:
    """:raises AssertionError: with ``how`` and the first place that differs."""
    if expected != got:
        raise AssertionError(f"{how}: the exported state differs from that of {other}{_place(expected, got)}")


def differences(expected: Outputs, got: Outputs, other: str) -> Iterator[str]:
    """Each record that differs, in order of identity."""
    for key in sorted(expected.keys() | got.keys()):
        ours, theirs = expected.get(key), got.get(key)
        if theirs is None:
            yield f"lacks {shown(ours)}, which {other} gives"
        elif ours is None:
            yield f"{shown(theirs)} where {other} gives nothing"
        elif _json.encode(ours) != _json.encode(theirs):
            yield f"{shown(theirs)} where {other} gives {shown(ours)}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _place(expected: Any, got: Any, path: str = "") -> str:
    """Where two states differ first: the way through objects and lists, or the byte."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            if key not in expected or key not in got:
                return f": {path}[{key!r}] is only in {'this' if key in got else 'that'} one"
            if expected[key] != got[key]:
                return _place(expected[key], got[key], f"{path}[{key!r}]")
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        index = next(i for i, (ours, theirs) in enumerate(zip(expected, got, strict=True)) if ours != theirs)
        return _place(expected[index], got[index], f"{path}[{index}]")
    if isinstance(expected, bytes) and isinstance(got, bytes):
        pairs = enumerate(zip(expected, got, strict=False))
        at = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(expected), len(got)))
        return f" from byte {at} on ({len(got)} and {len(expected)} bytes)"
    return f": {path or 'it'} is {shown(got)} and there {shown(expected)}"
