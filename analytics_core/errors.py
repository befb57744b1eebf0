"""Every exception of the core. The message is built here, so that each one names who, what, and what would be valid.

An error that can reach an HTTP client carries ``status`` and ``title``; `analytics_core.api.problems` turns it into
RFC 9457 ``application/problem+json`` without knowing any of them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def near(word: str, valid: Iterable[str]) -> str:
    """A ``; did you mean 'x'?`` for the nearest valid word, or the list of valid words when none is near."""
    words = sorted(valid)
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid are: {', '.join(words)}" if words else ""


class AnalyticsError(Exception):
    """Root of all errors that the core raises on purpose."""

    status = 500
    title = "Internal error"

    def extensions(self) -> Mapping[str, Any]:
        """Further members of the problem document (RFC 9457 §3.2)."""
        return {}


# --- configuration and manifests -------------------------------------------------------------------------------------


class ConfigError(AnalyticsError):
    """The host cannot start with the given configuration."""

    title = "Invalid configuration"

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


class ManifestError(AnalyticsError):
    """A manifest file does not fit its model. ``where`` is the file, ``path`` the key inside it."""

    status = 422
    title = "Invalid manifest"

    def __init__(self, where: Path | str, path: str, problem: str) -> None:
        self.where = str(where)
        self.path = path
        self.problem = problem
        super().__init__(f"{where}: {path + ': ' if path else ''}{problem}")


class IncompatibleError(ManifestError):
    """A plugin's manifest is written for another host, manifest version or Python: it may be right, but not here."""

    title = "Incompatible plugin"


class ManifestNotWrittenError(AnalyticsError):
    """The system does not let a manifest be written; everything is as it was."""

    status = 503
    title = "Manifests cannot be written"

    def __init__(self, where: Path | str, problem: OSError) -> None:
        super().__init__(f"{where} cannot be written: {problem.strerror or problem}; nothing was changed")


# --- requests --------------------------------------------------------------------------------------------------------


class RequestError(AnalyticsError):
    """The client's request cannot be served as it is."""

    status = 400
    title = "Bad request"


class MalformedBodyError(RequestError):
    title = "Malformed body"

    def __init__(self, problem: str) -> None:
        super().__init__(f"the body cannot be read: {problem}")


class BodyTooLargeError(RequestError):
    status = 413
    title = "Body too large"

    def __init__(self, limit: int, *, inflated: bool) -> None:
        what = "the body after inflation" if inflated else "the body"
        super().__init__(f"{what} is larger than {limit} bytes; send smaller batches")


class UnsupportedTypeError(RequestError):
    status = 415
    title = "Unsupported media type"

    def __init__(self, header: str, got: str, valid: Iterable[str]) -> None:
        super().__init__(f"{header} {got!r} is not supported; valid are: {', '.join(valid)}")


class RejectedError(RequestError):
    """Every event of a request was bad."""

    status = 422
    title = "No event was accepted"

    def __init__(self, rejected: list[dict[str, Any]]) -> None:
        self.rejected = rejected
        super().__init__(f"all {len(rejected)} events of the request were rejected; see 'rejected' for each")

    def extensions(self) -> Mapping[str, Any]:
        return {"accepted": 0, "duplicates": 0, "rejected": self.rejected}


class ParameterError(RequestError):
    """One parameter of a request is wrong."""

    status = 422
    title = "Invalid parameter"

    def __init__(self, parameter: str, problem: str) -> None:
        self.parameter = parameter
        super().__init__(f"{parameter}: {problem}")

    def extensions(self) -> Mapping[str, Any]:
        return {"parameter": self.parameter}


class UnauthenticatedError(RequestError):
    status = 401
    title = "Not authenticated"


class ForbiddenError(RequestError):
    status = 403
    title = "Forbidden"

    def __init__(self, subject: str, role: str, needed: str) -> None:
        super().__init__(f"{subject} has the role {role!r}; this needs {needed!r}")


class NotFoundError(RequestError):
    status = 404
    title = "Not found"

    def __init__(self, what: str, name: str, valid: Iterable[str] = ()) -> None:
        super().__init__(f"no {what} is named {name!r}{near(name, valid)}")


class ClashError(AnalyticsError):
    """One name stands for two things."""

    status = 409
    title = "Ambiguous name"

    def __init__(self, what: str, name: str, holders: Iterable[str]) -> None:
        super().__init__(f"{what} {name!r} is claimed by {' and '.join(holders)}; rename one of them")


class BusyError(AnalyticsError):
    """What is done once at a time is being done for somebody else."""

    status = 409
    title = "Under way already"

    def __init__(self, doing: str) -> None:
        super().__init__(f"{doing} already; ask again when that has ended")


class MergeRefusedError(RequestError):
    """Two ids are not made one person, or not parted, as things are; nothing has changed."""

    status = 409
    title = "Merge refused"

    def __init__(self, former: str, into: str, problem: str) -> None:
        self.former = former
        self.into = into
        super().__init__(problem)

    def extensions(self) -> Mapping[str, Any]:
        return {"from": self.former, "into": self.into}


class QueryError(RequestError):
    """A query that cannot be answered as asked (bad SQL, over budget)."""

    status = 422
    title = "Query not answered"


class BudgetError(QueryError):
    """A question takes more time or memory than one may; the text says how to ask for less."""

    title = "Over budget"


class StoppingError(QueryError):
    """A query that the end of the host cuts off, or that comes after it: another host, or a later one, answers it."""

    status = 503
    title = "Host is stopping"
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("the host is stopping")


class BuildingError(QueryError):
    """What a question reads is still being made: the same question is answered soon."""

    status = 503
    title = "Not ready yet"
    retry_after = 5

    def __init__(self, state: str) -> None:
        super().__init__(f"{state}; ask again in a moment")


# --- capacity --------------------------------------------------------------------------------------------------------


class OverloadedError(AnalyticsError):
    """Nothing was stored; the same request may be sent again after ``retry_after`` seconds."""

    status = 503
    title = "Overloaded"

    def __init__(self, reason: str, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(f"{reason}; nothing was stored, retry after {retry_after} s")


class LogFullError(OverloadedError):
    """The disk reserve or the log's own limit is reached: ingest is refused, all else runs on."""

    title = "Storage full"

    def __init__(self, reason: str) -> None:
        super().__init__(reason, retry_after=10)


class LogWriteError(OverloadedError):
    """A write or fdatasync failed. The log was cut back to its durable position."""

    title = "Storage write failed"

    def __init__(self, path: Path | str, problem: BaseException) -> None:
        super().__init__(f"writing {path} failed: {problem}", retry_after=5)


# --- storage ---------------------------------------------------------------------------------------------------------


class StorageError(AnalyticsError):
    title = "Storage error"


class LogCorruptionError(StorageError):
    """A bad frame that is not the torn end of the last segment: the host stops rather than skip events."""

    def __init__(self, path: Path, offset: int, problem: str) -> None:
        self.path = path
        self.offset = offset
        super().__init__(f"{path}: bad frame at byte {offset}: {problem}; restore this file from a backup")


class LogLockedError(StorageError):
    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is in use by {owner}; one process owns a log")


class TrimmedError(StorageError):
    """The asked position is no longer in the log; the lake has it."""

    def __init__(self, seq: int, first: int) -> None:
        self.seq = seq
        self.first = first
        super().__init__(f"position {seq} is no longer in the log, which starts at {first}")


class FencedError(StorageError):
    """A writer whose epoch is over: its lane was taken over by a newer thread, process or generation."""

    def __init__(self, lane: str, epoch: int, current: int) -> None:
        super().__init__(f"lane {lane!r}: epoch {epoch} is over, the current one is {current}; nothing was written")


class LaneEndedError(AnalyticsError):
    """A lane was asked for something between two batches, and there will be no further batch."""

    def __init__(self, lane: str) -> None:
        super().__init__(f"lane {lane!r} has ended")


class RetentionHeldError(StorageError):
    """A retention run that would drop too much, or that follows a clock jump, waits for the operator.

    ``others`` are the further tenants that the same run has held.
    """

    def __init__(self, tenant: str, share: float, reason: str, others: Sequence[RetentionHeldError] = ()) -> None:
        self.tenant = tenant
        self.share = share
        self.reason = reason
        self.others = others
        super().__init__(f"tenant {tenant!r}: retention would drop {share:.0%} of its events; {reason}")


# --- plugins ---------------------------------------------------------------------------------------------------------


class PluginError(AnalyticsError):
    """Something about one plugin. ``plugin`` is its name."""

    title = "Plugin error"

    def __init__(self, plugin: str, problem: str) -> None:
        self.plugin = plugin
        super().__init__(f"Plugin {plugin!r}: {problem}")


class RestartRequiredError(PluginError):
    """A change that a running process cannot take in: only a new process of the host can."""


class HookRefusedError(PluginError):
    """A load-time refusal: the plugin's hooks do not fit the specification."""


class PluginSettingsError(PluginError):
    """The operator's settings do not fit the plugin's JSON Schema."""


class NotSwitchedError(PluginError):
    """The plugin was neither enabled nor disabled: something else decides, or only a person can edit the manifest."""

    status = 409
    title = "Plugin not switched"


class PluginUnavailableError(PluginError):
    """The plugin that would answer is not active."""

    status = 503
    title = "Plugin unavailable"


class PluginStartingError(PluginUnavailableError):
    """The plugin that would answer is on its way up: the same question is answered soon."""

    title = "Plugin starting"
    retry_after = 1

    def __init__(self, plugin: str, doing: str) -> None:
        super().__init__(plugin, f"{doing}; ask again in a moment")


class PluginRunsError(PluginError):
    """What is asked for would be taken from under a running plugin; nothing has changed."""

    status = 409
    title = "Plugin runs"


class ReplayError(PluginError):
    """A replay cannot be had, or not be switched to, as things are; nothing has changed."""

    status = 409
    title = "Replay not possible"


class HookFailedError(PluginError):
    """A hook raised, or returned what its specification does not allow."""

    status = 502
    title = "Plugin failed"

    def __init__(self, plugin: str, hook: str, problem: BaseException | str) -> None:
        self.hook = hook
        shown = problem if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
        super().__init__(plugin, f"hook {hook!r} failed: {shown}")


class HookTimeoutError(HookFailedError):
    """A hook ran over its limit."""

    status = 504
    title = "Plugin timed out"

    def __init__(self, plugin: str, hook: str, seconds: float) -> None:
        super().__init__(plugin, hook, f"no answer within {seconds:g} s")


class WorkerDiedError(PluginError):
    """The process of an ``isolation: process`` plugin is gone."""

    def __init__(self, plugin: str, how: str) -> None:
        super().__init__(plugin, f"its process ended: {how}")


# --- the command line ------------------------------------------------------------------------------------------------


class ImportFileError(AnalyticsError):
    """A file that cannot be read on. What came before row ``row`` is imported; 0 means that nothing was read."""

    def __init__(self, path: Path, row: int, problem: str) -> None:
        self.row = row
        super().__init__(f"{path}: {f'near row {row}' if row else 'cannot be read'}: {problem}")


class NoServerError(AnalyticsError):
    """Nothing answers at ``url``."""

    def __init__(self, url: str, problem: str) -> None:
        advice = "start one with 'analytics serve', or name one with --url"
        super().__init__(f"no server answers at {url} ({problem}); {advice}")


class ServerRefusedError(AnalyticsError):
    """The server answered what the command cannot go on with: the HTTP status ``answered``, why: ``detail``, and
    ``problem``, the type of the problem document, empty without one."""

    def __init__(self, url: str, status: int, detail: str, advice: str = "", problem: str = "") -> None:
        self.answered = status
        self.detail = detail
        self.problem = problem
        super().__init__(f"{url} answered {status}: {detail}{f'; {advice}' if advice else ''}")


class ServerDiedError(AnalyticsError):
    """The server process that a command started ended on its own. ``last_lines`` is the end of its output."""

    def __init__(self, code: int, last_lines: Iterable[str]) -> None:
        shown = "\n  ".join(last_lines) or "(it printed nothing)"
        super().__init__(f"the server ended with exit code {code}; its last lines:\n  {shown}")
