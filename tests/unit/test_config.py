"""Settings from host.yaml and the environment, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.pretty import Pretty

import analytics_core
from analytics_core.config import ApiKey, Settings, check_exposure, load_settings
from analytics_core.errors import ConfigError

PACKAGE = Path(analytics_core.__file__).parent


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "no-manifests"


@pytest.fixture(params=["shipped", "none"])
def manifests(request: pytest.FixtureRequest, nowhere: Path) -> Path:
    """The two that must be alike: the host.yaml of the repository, and no host.yaml at all."""
    return PACKAGE.parent / "manifests" if request.param == "shipped" else nowhere


def test_the_default_in_the_package_is_the_one_in_the_repository() -> None:
    shipped = (PACKAGE / "defaults" / "host.yaml").read_text("utf-8")
    assert shipped == (PACKAGE.parent / "manifests" / "host.yaml").read_text("utf-8")


def test_without_anything_set_the_defaults_of_the_structs_hold(manifests: Path) -> None:
    assert load_settings(manifests, {}) == Settings(manifests_dir=manifests)


@pytest.mark.parametrize(
    ("environ", "section", "key", "expected"),
    [
        ({"ANALYTICS_PORT": "5000"}, "server", "port", 5000),
        ({"PORT": "5001"}, "server", "port", 5001),
        ({"ANALYTICS_PORT": "5000", "PORT": "5001"}, "server", "port", 5000),
        ({"ANALYTICS_HOST": "::1"}, "server", "host", "::1"),
        ({"FRONTEND_URL": "http://localhost:3000"}, "server", "frontend_url", "http://localhost:3000"),
        ({"CORS_ORIGIN": "http://a, http://b"}, "server", "cors_origins", ("http://a", "http://b")),
        ({"ANALYTICS_DATA_DIR": "/srv/x"}, "storage", "data_dir", Path("/srv/x")),
        ({"JWT_SECRET": "1234"}, "auth", "jwt_secret", "1234"),
        ({"API_KEYS": "k1, acme:k2,acme/reader:k3,"}, "auth", "keys",
         (ApiKey("k1"), ApiKey("k2", "acme"), ApiKey("k3", "acme", "reader"))),
        ({"API_KEYS": "a:b:c"}, "auth", "keys", (ApiKey("b:c", "a"),)),
        ({"API_KEY_ENABLED": "yes", "API_KEYS": "k"}, "auth", "enabled", True),
        ({"API_KEY_ENABLED": "0"}, "auth", "enabled", False),
        ({"PLUGINS_ENABLED": "user-behavior,performance"}, "plugins", "enabled", ("user-behavior", "performance")),
        ({"PLUGINS_ENABLED": ""}, "plugins", "enabled", None),
        ({"PLUGINS_AUTO_LOAD": "FALSE"}, "plugins", "auto_load", False),
        ({"PLUGINS_ALLOW": "acme-*, shop"}, "plugins", "allow", ("acme-*", "shop")),
        ({"PLUGINS_ALLOW": ""}, "plugins", "allow", None),
        ({"PLUGINS_DENY": "acme-*"}, "plugins", "deny", ("acme-*",)),
        ({"PLUGINS_LOCKED": "true"}, "plugins", "locked", True),
        ({"PLUGINS_LOCK": "/etc/plugins.lock"}, "plugins", "lock", Path("/etc/plugins.lock")),
        ({"WS_ENABLED": "off"}, "live", "enabled", False),
        ({"WS_MAX_CONNECTIONS": "5"}, "live", "max_connections", 5),
        ({"LOG_LEVEL": "warning"}, "logging", "level", "WARNING"),
        ({"LOG_DIR": "/var/log"}, "logging", "dir", Path("/var/log")),
        ({"LOG_DIR": ""}, "logging", "dir", None),
        ({"ML_ENABLED": "false"}, "models", "enabled", False),
        ({"ML_MODELS_DIR": "m"}, "models", "dir", Path("m")),
        ({"REDIS_PORT": "1"}, "backends", "redis_port", 1),
    ],
)  # fmt: skip
def test_each_variable_reaches_its_setting(
    manifests: Path, environ: dict[str, str], section: str, key: str, expected: object
) -> None:
    assert getattr(getattr(load_settings(manifests, environ), section), key) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ANALYTICS_PORT": "abc"}, "server.port: 'abc' is not a whole number; it comes from ANALYTICS_PORT"),
        ({"PORT": "4000.5"}, "server.port: '4000.5' is not a whole number; it comes from PORT"),
        ({"PORT": "70000"}, "server.port: '70000' is more than 65535"),
        ({"WS_ENABLED": "maybe"}, "live.enabled: 'maybe' is neither true nor false; it comes from WS_ENABLED"),
        ({"WS_MAX_CONNECTIONS": "0"}, "live.max_connections: '0' is less than 1"),
        ({"LOG_LEVEL": "loud"}, "logging.level: 'loud' is not valid; valid are: DEBUG, ERROR, INFO, WARNING"),
        ({"API_KEYS": "k,a/admin:k2"}, "auth.keys: entry 2 is not [tenant[/role]:]key"),
        ({"API_KEYS": "Big Tenant:k"}, "auth.keys: entry 1 is not [tenant[/role]:]key"),
        ({"API_KEYS": "acme:"}, "auth.keys: entry 1 is not [tenant[/role]:]key"),
        ({"API_KEYS": "k,acme:k"}, "auth.keys: entry 2 repeats the key of an earlier one"),
        ({"API_KEY_ENABLED": "true"}, "auth.enabled: nobody could get in; set API_KEYS or JWT_SECRET"),
        ({"REDIS_HOST": "r"}, "backends.redis_host: this version stores embedded only; unset REDIS_HOST"),
        ({"MONGODB_URL": "mongodb://m"}, "backends.mongodb_url: this version stores embedded only; unset MONGODB_URL"),
        ({"MONGODB_URI": "mongodb://m"}, "backends.mongodb_url: this version stores embedded only; unset MONGODB_URL"),
    ],
)
def test_a_wrong_variable_names_file_key_and_variable(manifests: Path, environ: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(manifests, environ)
    file = str(manifests / "host.yaml") if manifests.exists() else "the default host.yaml"
    assert str(raised.value).startswith(f"{file}: {expected}")


def host(tmp_path: Path, text: str) -> Path:
    (tmp_path / "host.yaml").write_text(f"kind: host\n{text}", "utf-8")
    return tmp_path


def test_what_host_yaml_does_not_say_keeps_its_default_and_variable(tmp_path: Path) -> None:
    settings = load_settings(
        host(tmp_path, "server: {port: 9}\nlanes: {checkpoint_seconds: 1}\n"), {"ANALYTICS_HOST": "::1"}
    )
    assert (settings.server.port, settings.server.host) == (9, "::1")
    assert settings.lanes.checkpoint_seconds == 1.0


def test_a_variable_that_host_yaml_overrides_is_not_read(tmp_path: Path) -> None:
    assert load_settings(host(tmp_path, "server: {port: 9}\n"), {"ANALYTICS_PORT": "abc"}).server.port == 9


def test_keys_may_be_written_as_a_list(tmp_path: Path) -> None:
    text = "auth: {enabled: true, keys: ['acme/operator:k', {key: k2, tenant: b, role: reader}]}\n"
    assert load_settings(host(tmp_path, text), {}).auth.keys == (
        ApiKey("k", "acme", "operator"),
        ApiKey("k2", "b", "reader"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {prot: 1}\n", "server.prot: the key is not known; did you mean 'port'?"),
        ("servers: {}\n", "servers: the key is not known; did you mean 'server'?"),
        ("server: {port: '5'}\n", "server.port: '5' is not a whole number (line 2)"),
        ("server: {port: true}\n", "server.port: true is not a whole number"),
        ("auth: {jwt_secret: 12345678}\n", "auth.jwt_secret: the value (hidden) is not text"),
        ("auth: {keys: 5}\n", "auth.keys: 5 is not a list"),
        ("server: {host: '${NEVER}'}\n", "server.host: the environment variable NEVER is not set and has no default"),
        ("storage: {retention_days: 0}\n", "storage.retention_days: 0 is less than 1"),
        ("manifests_dir: x\n", "manifests_dir: is told by --manifests or ANALYTICS_MANIFESTS_DIR alone"),
        ("---\nkind: host\n", "a host.yaml is one document of 'kind: host'"),
    ],
)
def test_a_wrong_host_yaml(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(host(tmp_path, text), {})
    assert str(raised.value).startswith(f"{tmp_path / 'host.yaml'}: {expected}")


def test_events_may_be_kept_for_ever(tmp_path: Path) -> None:
    assert load_settings(host(tmp_path, "storage: {retention_days: null}\n"), {}).storage.retention_days is None


def test_what_the_command_line_told_beats_all(tmp_path: Path) -> None:
    settings = load_settings(
        host(tmp_path, "server: {port: 9, host: 10.0.0.1}\n"),
        {"ANALYTICS_PORT": "8"},
        server={"port": 0, "host": None, "insecure": True},
        storage={"data_dir": tmp_path},
        logging={"level": "debug"},
    )
    assert (settings.server.port, settings.server.host, settings.server.insecure) == (0, "10.0.0.1", True)
    assert (settings.storage.data_dir, settings.logging.level) == (tmp_path, "DEBUG")


@pytest.mark.parametrize("overrides", [{"server": {"prt": 1}}, {"sever": {"port": 1}}, {"server": {"port": "x"}}])
def test_a_wrong_override_is_refused(nowhere: Path, overrides: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="the command line: "):
        load_settings(nowhere, {}, **overrides)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text("hush\n", "utf-8")
    assert load_settings(host(tmp_path, "auth: {jwt_secret: '${file:jwt}'}\n"), {}).auth.jwt_secret == "hush"


def test_secrets_are_in_no_repr(nowhere: Path) -> None:
    environ = {"API_KEYS": "acme:s3cret-a", "JWT_SECRET": "s3cret-b", "REDIS_PASSWORD": "s3cret-c"}
    settings = load_settings(nowhere, environ)
    assert settings.auth.keys[0].key == "s3cret-a"
    output = io.StringIO()
    Console(file=output, width=400).print(Pretty(settings))
    for shown in (repr(settings), f"{settings.auth}", str(settings.auth.keys), output.getvalue()):
        assert "s3cret" not in shown
    assert "tenant='acme'" in repr(settings)
    assert "jwt_secret='***'" in repr(settings)
    assert "redis_password=''" in repr(load_settings(nowhere, {}))


@pytest.mark.parametrize("environ", [{"API_KEYS": "S3/CRET:s3cret"}, {"API_KEYS": "s3cret,s3cret"}])
def test_secrets_are_in_no_message(nowhere: Path, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(nowhere, environ)
    assert "s3cret" not in str(raised.value).lower().replace("s3/cret", "s3cret")


@pytest.mark.parametrize(
    ("address", "auth", "insecure", "refused"),
    [
        ("127.0.0.1", False, False, False),
        ("127.8.8.8", False, False, False),
        ("::1", False, False, False),
        ("localhost", False, False, False),
        ("0.0.0.0", False, False, True),
        ("::", False, False, True),
        ("192.168.1.5", False, False, True),
        ("shop.example.org", False, False, True),
        ("", False, False, True),
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, True, False),
    ],
)
def test_without_auth_only_this_machine_may_connect(
    nowhere: Path, address: str, auth: bool, insecure: bool, refused: bool
) -> None:
    environ = {"API_KEYS": "k", "API_KEY_ENABLED": str(auth)}
    settings = load_settings(nowhere, environ, server={"host": address, "insecure": insecure})
    if not refused:
        check_exposure(settings)
        return
    with pytest.raises(ConfigError, match="set API_KEY_ENABLED=true with API_KEYS or JWT_SECRET, or listen on"):
        check_exposure(settings)
