"""What a generation has put into registries that the whole process shares, and what refuses to take it twice.

Code of a generation tells itself by its module, ``pkg__gN``. Some registries refuse the second registration, others
take it in silence, and then calls go to the wrong generation, or to both.
"""

from __future__ import annotations

import asyncio
import builtins
import copyreg
import encodings
import gc
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, Final, NamedTuple

from msgspec import Struct

from analytics_core.host.code.survivors import within

_ADVICE: Final = "unregister it in teardown and set 'reload.strategy: stop_first', or restart the host"
_HOLDING_DEPTH: Final = 4
_HOLDING_LENGTH: Final = 1_000
"""How deep, and into how large containers, a look goes for what a generation holds."""

Entries = Iterable[tuple[str, object]]
"""What is registered, by name, with the object whose code says whose it is."""


class Registration(Struct, frozen=True, order=True):
    """One entry of a registry. ``once``: with another generation's entry beside it, one of the two goes wrong. Else it
    only keeps its generation alive, or calls it."""

    registry: str
    what: str
    once: bool

    def __str__(self) -> str:
        return f"{self.registry} {self.what}".rstrip()


def registrations(alias: str) -> tuple[Registration, ...]:
    """What the modules below ``alias`` have in the registries now, sorted.

    It is found by the code it calls, and a Prometheus collector also by being held in a module or an object of the
    generation. ``atexit`` and audit hooks cannot be listed. Takes about a millisecond; with collectors of others a few
    tens, in which no other thread runs.
    """
    found = [
        Registration(registry.name, what, registry.once)
        for registry in _REGISTRIES
        for what, thing in registry.entries(alias)
        if _belongs(thing, alias)
    ]
    collectors = [Registration(_PROMETHEUS, what, once=True) for what in _collectors(alias)]
    return tuple(sorted({*found, *collectors}))


def hindrance(present: Iterable[Registration]) -> str:
    """Why no other generation can be loaded beside the one with these; empty when one can."""
    named = [str(each) for each in present if each.once]
    if not named:
        return ""
    return f"a process holds one of what it has registered, {', '.join(named)}; {_ADVICE}"


def refusal(error: BaseException) -> str:
    """Which registry has refused a second registration, and of what, if that is the cause of ``error``; else empty."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        for registry, pattern in _REFUSALS:
            if (match := pattern.search(str(cause))) is not None:
                what = min(re.findall(r"'(.+?)'", match[1]), key=len, default=match[1])
                return f"{registry} {what} is registered already, and a process holds one; {_ADVICE}"
        cause = cause.__cause__ or cause.__context__
    return ""


# --- whose it is -----------------------------------------------------------------------------------------------------


def _belongs(thing: object, alias: str) -> bool:
    """Whether it is code of the generation, or an object of one of its classes. Runs no code of ``thing``."""
    if isinstance(thing, partial):
        return _belongs(thing.func, alias)
    if isinstance(thing, MethodType):
        return _belongs(thing.__func__, alias) or _belongs(thing.__self__, alias)
    if isinstance(thing, FunctionType):
        wrapped = vars(thing).get("__wrapped__")
        own = within(thing.__globals__.get("__name__"), alias)
        return own or (wrapped is not None and _belongs(wrapped, alias))
    return within(getattr(thing if isinstance(thing, type) else type(thing), "__module__", None), alias)


def _held(alias: str) -> set[int]:
    """The ids of what the modules, the classes and the living objects of the generation hold."""
    modules = [module for name, module in sys.modules.copy().items() if within(name, alias)]
    layer = [value for module in modules for value in vars(module).values()]
    classes = [each for each in layer if isinstance(each, type) and _belongs(each, alias)]
    if classes:
        layer += [each for each in gc.get_referrers(*classes) if _belongs(each, alias)]
    seen: set[int] = set()
    for _ in range(_HOLDING_DEPTH):
        seen.update(map(id, layer))
        holders = [each for each in layer if _leads_on(each, alias)]
        layer = [each for each in gc.get_referents(*holders) if id(each) not in seen]
    return seen


def _leads_on(thing: object, alias: str) -> bool:
    if isinstance(thing, dict | list | tuple | set | frozenset):
        return len(thing) <= _HOLDING_LENGTH
    return isinstance(thing, CellType) or _belongs(thing, alias)


# --- the registries --------------------------------------------------------------------------------------------------


def _loaded(module: str) -> Any:
    """A library that is imported already; without it there is nothing in its registry."""
    return sys.modules.get(module)


def _collectors(alias: str) -> Iterator[str]:
    """The collectors in the default registry of ``prometheus_client``, each by the shortest name of its series."""
    registry = getattr(_loaded("prometheus_client"), "REGISTRY", None)
    known: dict[Any, list[str]] = dict(getattr(registry, "_collector_to_names", {}))
    held = _held(alias) if known else set()
    for collector, names in known.items():
        if id(collector) in held or _belongs(collector, alias):
            yield min(names, key=len, default=type(collector).__qualname__)


def _arrow_types(alias: str) -> Entries:
    for each in list(getattr(_loaded("pyarrow.lib"), "_python_extension_types_registry", ())):
        if _belongs(each, alias) and _is_known_to_arrow(each):  # the list keeps those that were unregistered
            yield each.extension_name, each


def _is_known_to_arrow(extension: Any) -> bool:
    """Whether a schema that is read gets an extension type by this one's name, which is in the metadata of its field
    (arrow.apache.org, "Extension Types")."""
    arrow = _loaded("pyarrow")
    try:
        told = {"ARROW:extension:name": extension.extension_name}
        told["ARROW:extension:metadata"] = extension.__arrow_ext_serialize__()
        written = arrow.schema([arrow.field("x", extension.storage_type, metadata=told)]).serialize()
        return isinstance(arrow.ipc.read_schema(written).field(0).type, arrow.BaseExtensionType)
    except Exception:
        return True  # the plugin's code for it fails, so it has been called


def _torch_operators() -> Entries:
    """Those of ``torch.library.custom_op``, which the next of the same name overwrites."""
    operators = getattr(_loaded("torch._library.custom_ops"), "OPDEFS", {})
    return [(name, getattr(operator, "_init_fn", None)) for name, operator in list(operators.items())]


def _signals() -> Entries:
    for number in signal.valid_signals():
        yield getattr(number, "name", str(number)), signal.getsignal(number)


def _hooks() -> Entries:
    places: list[tuple[ModuleType, tuple[str, ...]]] = [
        (sys, ("excepthook", "unraisablehook", "displayhook", "breakpointhook")),
        (threading, ("excepthook",)),
        (warnings, ("showwarning", "formatwarning")),
        (builtins, tuple(vars(builtins))),
    ]
    for module, names in places:
        yield from ((f"{module.__name__}.{name}", getattr(module, name, None)) for name in names)
    yield "asyncio event loop policy", vars(asyncio.events).get("_event_loop_policy")


def _import_hooks() -> Entries:
    for what in ("meta_path", "path_hooks"):
        yield from ((f"{_name(each)} in sys.{what}", each) for each in list(getattr(sys, what)))


def _codecs() -> Entries:
    lists = (each for each in _hidden_lists() if encodings.search_function in each)
    return [(_name(entry), entry) for each in lists for entry in each]


def _fork_hooks() -> Entries:
    lists = (each for each in _hidden_lists() if encodings.search_function not in each)
    return [(_name(entry), entry) for each in lists for entry in each]


@cache
def _hidden_lists() -> tuple[list[Any], ...]:
    """Lists that CPython keeps for itself and shows to its collector alone. In each the standard library has an entry:
    ``logging`` before a fork and in the parent after it (to Python 3.12, and from 3.13), ``threading`` in the child."""
    names = ("_acquireLock", "_prepareFork", "_releaseLock", "_afterFork")
    known = (
        encodings.search_function,
        vars(threading).get("_after_fork"),
        *(vars(logging).get(name) for name in names),
    )
    referrers = gc.get_referrers(*(each for each in known if each is not None))
    return tuple(each for each in referrers if type(each) is list)


def _reducers(alias: str) -> Entries:
    """Those for classes of others: one for its own class only keeps its generation alive."""
    for kind, reduce in list(copyreg.dispatch_table.items()):
        if not _belongs(kind, alias):
            yield f"of {kind.__module__}.{kind.__qualname__}", reduce


def _log_handlers() -> Entries:
    loggers = [each for each in list(logging.root.manager.loggerDict.values()) if isinstance(each, logging.Logger)]
    for logger in (logging.root, *loggers):
        for each in (*logger.handlers, *logger.filters):
            yield f"{_name(each)} of logger {logger.name!r}", each
            yield f"{_name(each)} of logger {logger.name!r}", getattr(each, "formatter", None)
    yield "logging.setLoggerClass", logging.getLoggerClass()
    yield "logging.setLogRecordFactory", logging.getLogRecordFactory()


def _collector_callbacks() -> Entries:
    return [(_name(each), each) for each in list(gc.callbacks)]


def _name(thing: object) -> str:
    named = isinstance(thing, FunctionType | MethodType | type)
    return str(getattr(thing if named else type(thing), "__qualname__", ""))


class _Registry(NamedTuple):
    name: str
    entries: Callable[[str], Entries]
    once: bool = True


def _of_all(entries: Callable[[], Entries]) -> Callable[[str], Entries]:
    return lambda _: entries()


_PROMETHEUS: Final = "Prometheus collector"
_REGISTRIES: Final = (
    _Registry("Arrow extension type", _arrow_types),
    _Registry("torch operator", _of_all(_torch_operators)),
    _Registry("signal handler", _of_all(_signals)),
    _Registry("hook", _of_all(_hooks)),
    _Registry("import hook", _of_all(_import_hooks)),
    _Registry("codec search function", _of_all(_codecs)),
    _Registry("fork hook", _of_all(_fork_hooks)),
    _Registry("pickle reducer", _reducers),
    _Registry("log handler", _of_all(_log_handlers), once=False),
    _Registry("gc callback", _of_all(_collector_callbacks), once=False),
)
_REFUSALS: Final = tuple(
    (registry, re.compile(pattern, re.DOTALL))
    for registry, pattern in (
        (_PROMETHEUS, r"Duplicated timeseries in CollectorRegistry: (.+)"),
        ("Arrow extension type", r"A type extension with name (\S+) already defined"),
        ("Arrow function", r"Already have a function registered with name: (\S+)"),
        (
            "torch operator",
            r"register an operator \((.+?)\) with the same name and overload name multiple times",
        ),
        ("torch operator", r"already a kernel registered from python overriding (.+?)'s behavior"),
        ("torch library", r"Only a single TORCH_LIBRARY can be used to register the namespace ([^\s;]+)"),
        ("protobuf", r"into descriptor pool: duplicate (.+)"),
        ("protobuf file", r"Invalid proto descriptor for file \"(.+?)\":.+ already in the pool"),
    )
)
