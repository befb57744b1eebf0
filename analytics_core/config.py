"""The host's settings: parsed once at the edge to frozen structs, then handed to whoever needs a part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct

Role = Literal["reader", "writer", "operator"]
MB = 1 << 20
GB = 1 << 30


class ApiKey(Struct, frozen=True):
    """One entry of ``API_KEYS``: ``[tenant[/role]:]key``."""

    key: str
    tenant: str = "default"
    role: Role = "writer"


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 4000
    frontend_url: str = ""
    cors_origins: tuple[str, ...] = ()
    insecure: bool = False


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """With ``enabled`` false every caller is the tenant ``default`` and the server stays on loopback."""

    enabled: bool = False
    keys: tuple[ApiKey, ...] = ()
    jwt_secret: str = ""


class Intake(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the acknowledgement path, in bytes unless named otherwise."""

    max_body_bytes: int = 32 * MB
    max_inflated_bytes: int = 128 * MB
    max_event_bytes: int = 1 * MB
    queue_bytes: int = 256 * MB
    enrich_seconds: float = 2.0


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """Where events live. ``log_max_bytes`` None takes 20 % of the disk."""

    data_dir: Path = Path("data")
    segment_bytes: int = 64 * MB
    log_max_bytes: int | None = None
    disk_reserve_bytes: int = 1 * GB
    dedup_window: int = 10_000_000
    store_commit_bytes: int = 64 * MB
    store_commit_seconds: float = 60.0
    retention_days: int | None = 90
    maintenance_seconds: float = 300.0


class Lanes(Struct, frozen=True, forbid_unknown_fields=True):
    checkpoint_seconds: float = 5.0
    checkpoint_events: int = 1_000_000
    hang_seconds: float = 30.0


class Plugins(Struct, frozen=True, forbid_unknown_fields=True):
    """``enabled`` lists the only plugins that may run; None leaves it to each plugin's settings manifest."""

    enabled: tuple[str, ...] | None = None
    auto_load: bool = True


class Live(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    max_connections: int = 10_000
    queue_messages: int = 1_000


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    dir: Path | None = None


class Models(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    dir: Path = Path("models")


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
    manifests_dir: Path = Path("manifests")
