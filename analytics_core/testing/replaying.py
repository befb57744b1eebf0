"""`replay`: the calls of a recording made again, on another version of the plugin or the same one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Struct

from analytics_core.events import EventBatch
from analytics_core.host.wire import decode, encode
from analytics_core.records import Enrichment, ProcessResult
from analytics_core.testing.comparing import differences as outputs_differences
from analytics_core.testing.comparing import shown
from analytics_core.testing.recorded import Answered, Begun, Called, Content, RecordingError, batch_of, read
from analytics_core.testing.recording import failure
from analytics_core.testing.running import Subject, keyed

_RESULTS: Final[dict[str, Any]] = {"process": ProcessResult | None, "enrich": Enrichment | None}


class Failed(Struct, frozen=True):
    """A call that gave no result: what it raised, what was wrong with its answer, or that it never came back."""

    problem: str


_NEVER: Final = Failed("it never came back: the recording ends in this call")


class Replayed(NamedTuple):
    """One call: what it gave when it was recorded, and what it gives now."""

    number: int
    recorded: ProcessResult | Enrichment | Failed | None
    now: ProcessResult | Enrichment | Failed | None
    batch: EventBatch


def replay(path: Path | str, plugin_class: type, settings: Mapping[str, Any] | None = None) -> Iterator[Replayed]:
    """Make the recorded calls again, in order: each recorded instance is one here, which begins with the state that it
    had then. A torn end is left out, with a warning.

    :raises RecordingError: for a file that is no recording, of another version, or damaged before its end.
    """
    content = _whole(Path(path))
    assert content.of is not None
    hook = content.of.hook
    answers = {each.number: each for each in content.frames if isinstance(each, Answered)}
    subjects: dict[int, Subject] = {}
    for each in content.frames:
        if isinstance(each, Begun):
            subjects[each.instance] = _begun(each, plugin_class, settings)
        elif isinstance(each, Called):
            batch = batch_of(each.batch)
            now = _call(subjects[each.instance], hook, batch)
            yield Replayed(each.number, _recorded(answers.get(each.number), hook), now, batch)


def differences(path: Path | str, plugin_class: type, settings: Mapping[str, Any] | None = None) -> list[str]:
    """Every difference between what `replay` gives and what was recorded, each with the number of its call."""
    return [
        f"call {each.number} of {len(each.batch)} events: {difference}"
        for each in replay(path, plugin_class, settings)
        for difference in _differing(each)
    ]


def _whole(path: Path) -> Content:
    content = read(path)
    if content.note:
        warnings.warn(content.note, stacklevel=4)
    if content.of is None:
        raise RecordingError(path, "holds no call")
    return content


def _begun(begun: Begun, plugin_class: type, settings: Mapping[str, Any] | None) -> Subject:
    subject = Subject(plugin_class, settings)
    if begun.state is not None:
        subject.restore(begun.state, begun.version)
    return subject


def _call(subject: Subject, hook: str, batch: EventBatch) -> Any:
    try:
        return decode(encode(subject.call(hook, batch=batch)), _RESULTS[hook])
    except Exception as error:
        return Failed(failure(error))


def _recorded(answer: Answered | None, hook: str) -> Any:
    if answer is None:
        return _NEVER
    return Failed(answer.failure) if answer.failure else decode(answer.result, _RESULTS[hook])


def _differing(each: Replayed) -> Iterator[str]:
    was, now = each.recorded, each.now
    if isinstance(was, ProcessResult | None) and isinstance(now, ProcessResult | None):
        yield from outputs_differences(keyed(was or ProcessResult()), keyed(now or ProcessResult()), "the recording")
    elif encode(was) != encode(now):
        yield f"{_said(now)} where the recording has {_said(was)}"


def _said(value: Any) -> str:
    return f"failed ({value.problem})" if isinstance(value, Failed) else shown(value)
