"""The host's settings: parsed once at the edge to frozen structs, then handed to whoever needs a part of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from msgspec import Meta, Struct

from analytics_core.errors import ConfigError, ManifestError
from analytics_core.manifest import TENANT, Document, Filled, Source, fit, read_documents, schema_of
from analytics_core.manifest import schemas as manifest_schemas

Role = Literal["reader", "writer", "operator"]
MB = 1 << 20
GB = 1 << 30

Secret = Annotated[str, Meta(extra={"secret": True})]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
"""0 lets the system choose."""


class _Masked(Struct, frozen=True):
    """Shows of its secret fields only whether they are set, in ``repr``, rich tables and tracebacks alike."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        given = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [(name, "***" if value and name in _SECRETS else value) for name, value in given]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


_SECRETS: Final = frozenset({"key", "jwt_secret", "redis_password", "mongodb_url"})


class ApiKey(_Masked, frozen=True, forbid_unknown_fields=True):
    """One entry of ``API_KEYS``: ``[tenant[/role]:]key``."""

    key: Annotated[str, Meta(min_length=1, extra={"secret": True})]
    tenant: Annotated[str, Meta(pattern=TENANT)] = "default"
    role: Role = "writer"


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Port = 4000
    frontend_url: str = ""
    cors_origins: tuple[str, ...] = ()
    insecure: bool = False


class Auth(_Masked, frozen=True, forbid_unknown_fields=True):
    """With ``enabled`` false every caller is the tenant ``default`` and the server stays on loopback."""

    enabled: bool = False
    keys: tuple[ApiKey, ...] = ()
    jwt_secret: Secret = ""


class Intake(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the acknowledgement path, in bytes unless named otherwise."""

    max_body_bytes: Count = 32 * MB
    max_inflated_bytes: Count = 128 * MB
    max_event_bytes: Count = 1 * MB
    queue_bytes: Count = 256 * MB
    enrich_seconds: Seconds = 2.0


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """Where events live. ``log_max_bytes`` None takes 20 % of the disk."""

    data_dir: Path = Path("data")
    segment_bytes: Count = 64 * MB
    log_max_bytes: Count | None = None
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = 1 * GB
    dedup_window: Count = 10_000_000
    store_commit_bytes: Count = 64 * MB
    store_commit_seconds: Seconds = 60.0
    retention_days: Count | None = 90
    maintenance_seconds: Seconds = 300.0


class Lanes(Struct, frozen=True, forbid_unknown_fields=True):
    checkpoint_seconds: Seconds = 5.0
    checkpoint_events: Count = 1_000_000
    hang_seconds: Seconds = 30.0


class Plugins(Struct, frozen=True, forbid_unknown_fields=True):
    """``enabled`` lists the only plugins that may run; None leaves it to each plugin's settings manifest.

    ``allow`` and ``deny`` hold patterns (``acme-*``) of names of plugins or distributions: whatever is said elsewhere,
    nothing runs that ``deny`` matches, or that ``allow`` does not; None allows all. With ``locked`` nothing runs but
    what the file ``lock`` has; None is ``plugins.lock`` beside the manifests directory.

    ``watch``: whether changed manifests, sources and distributions are taken into the running host; ``notify`` by the
    system's notifications, ``poll`` by looking twice a second. ``safe_mode``: whether only proven plugins run after
    three failed starts; false also forgets those so far.
    """

    enabled: tuple[str, ...] | None = None
    auto_load: bool = True
    watch: Literal["notify", "poll", "off"] = "notify"
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    locked: bool = False
    lock: Path | None = None
    safe_mode: bool = True


class Live(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    max_connections: Count = 10_000
    queue_messages: Count = 1_000


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    dir: Path | None = None


class Models(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    dir: Path = Path("models")


class Backends(_Masked, frozen=True, forbid_unknown_fields=True):
    """Where Redis and MongoDB are. This version stores embedded only and refuses to start with either set."""

    redis_host: str = ""
    redis_port: Port = 6379
    redis_password: Secret = ""
    redis_db: Annotated[int, Meta(ge=0)] = 0
    mongodb_url: Secret = ""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that ``manifests/host.yaml`` says, after the environment was filled in."""

    server: Server = Server()
    auth: Auth = Auth()
    intake: Intake = Intake()
    storage: Storage = Storage()
    lanes: Lanes = Lanes()
    plugins: Plugins = Plugins()
    live: Live = Live()
    logging: Logging = Logging()
    models: Models = Models()
    backends: Backends = Backends()
    manifests_dir: Path = Path("manifests")


_DEFAULTS: Final = Path(__file__).parent / "defaults" / "host.yaml"
_DEFAULT_NAME: Final = "the default host.yaml"


def load_settings(manifests_dir: Path, environ: Mapping[str, str], **overrides: Mapping[str, Any]) -> Settings:
    """The settings of ``manifests_dir/host.yaml`` over the shipped defaults, both with ``environ`` filled in.

    A key that the file does not have, or a missing file, leaves the default, which reads the same variables.
    ``overrides`` are sections, as ``server={"port": 0, "insecure": True}``; a None in them overrides nothing.

    :raises ConfigError: naming the file, the key, what is wrong and what is valid.
    """
    path = manifests_dir / "host.yaml"
    try:
        default = _document(_DEFAULTS, environ)
        given = _document(path, environ) if path.exists() else Document({}, Source(_DEFAULT_NAME))
        source = Source(_DEFAULT_NAME, default.source.lines)
        written = _with_keys(given.values, given.source)
        told = _plain(overrides)
        fit(Settings, written, given.source)
        fit(Settings, told, Source("the command line"))
        values = _with_keys(_merged(_merged(default.values, written), told), source)
        settings = fit(Settings, {**values, "manifests_dir": str(manifests_dir)}, source)
    except ManifestError as error:
        raise ConfigError(error.where, str(error).removeprefix(f"{error.where}: ")) from error
    _check(settings, given.source.path)
    return settings


def check_exposure(settings: Settings) -> None:
    """Without auth only this machine may connect, unless the operator insists.

    :raises ConfigError: for an address beyond loopback with neither auth nor ``insecure``.
    """
    host = settings.server.host
    if settings.auth.enabled or settings.server.insecure or _is_loopback(host):
        return
    raise ConfigError(
        "server.host",
        f"{host!r} is reachable from other machines, and auth is off; set API_KEY_ENABLED=true with API_KEYS or "
        "JWT_SECRET, or listen on 127.0.0.1, or insist with --insecure",
    )


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every manifest kind, ``host`` among them."""
    host = schema_of("host", Settings)
    del host["properties"]["manifests_dir"]
    return {"host": host, **manifest_schemas()}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _document(path: Path, environ: Mapping[str, str]) -> Document:
    """The host document without its kind."""
    documents = read_documents(path, environ)
    if len(documents) != 1 or documents[0].values.get("kind") != "host":
        raise ManifestError(path, "", "a host.yaml is one document of 'kind: host'")
    values, source = documents[0].values, documents[0].source
    if "manifests_dir" in values:
        raise source.error(("manifests_dir",), "is told by --manifests or ANALYTICS_MANIFESTS_DIR alone")
    return Document({key: value for key, value in values.items() if key != "kind"}, source)


def _with_keys(values: dict[str, Any], source: Source) -> dict[str, Any]:
    """With ``auth.keys`` taken apart into entries of `ApiKey`."""
    auth = values.get("auth")
    if not isinstance(auth, dict) or "keys" not in auth:
        return values
    return {**values, "auth": {**auth, "keys": _keys(auth["keys"], source)}}


def _keys(given: Any, source: Source) -> Any:
    entries = given.split(",") if isinstance(given, str) else given
    if not isinstance(entries, list):
        return given  # the model says what is wrong with it
    read = [
        _key(entry.strip(), index, source) if isinstance(entry, str) else entry for index, entry in enumerate(entries)
    ]
    keys = [entry for entry in read if entry is not None]
    words = [entry.get("key") for entry in keys if isinstance(entry, dict)]
    for index, word in enumerate(words):
        if word in words[:index]:
            raise source.error(("auth", "keys"), f"entry {index + 1} repeats the key of an earlier one")
    return keys


def _key(entry: str, index: int, source: Source) -> dict[str, str] | None:
    """One ``[tenant[/role]:]key``. Messages show nothing of the entry: any part may belong to the secret."""
    if not entry:
        return None
    owner, colon, key = entry.partition(":")
    if not colon:
        return {"key": entry}
    tenant, slash, role = owner.partition("/")
    roles = get_args(Role)
    if not key or not re.fullmatch(TENANT, tenant) or (slash and role not in roles):
        raise source.error(
            ("auth", "keys"),
            f"entry {index + 1} is not [tenant[/role]:]key; a tenant matches {TENANT}, "
            f"a role is one of: {', '.join(roles)}",
        )
    return {"key": key, "tenant": tenant, "role": role or "writer"}


def _plain(overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        section: {key: _value(value) for key, value in values.items() if value is not None}
        for section, values in overrides.items()
    }


def _value(value: Any) -> Any:
    if isinstance(value, str | Path):
        return Filled(str(value), "the command line")
    return list(value) if isinstance(value, tuple) else value


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key; anything else is replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _check(settings: Settings, where: str) -> None:
    backends = settings.backends
    for value, key, variables in (
        (backends.redis_host, "redis_host", "REDIS_HOST"),
        (backends.mongodb_url, "mongodb_url", "MONGODB_URL and MONGODB_URI"),
    ):
        if value:
            raise ConfigError(where, f"backends.{key}: this version stores embedded only; unset {variables}")
    if settings.auth.enabled and not settings.auth.keys and not settings.auth.jwt_secret:
        raise ConfigError(
            where, "auth.enabled: nobody could get in; set API_KEYS or JWT_SECRET, or API_KEY_ENABLED=false"
        )
