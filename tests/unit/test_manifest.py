"""Manifests, tested by breaking one good example of each kind: the mutation stands beside the words to expect."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import analytics_core
from analytics_core import config
from analytics_core.errors import IncompatibleError, ManifestError, PluginSettingsError
from analytics_core.manifest import (
    Filled,
    MetricManifest,
    PluginManifest,
    PluginSettingsManifest,
    TenantManifest,
    checked_settings,
    fit_schema,
    read_deployment,
    read_file,
    read_plugin,
    schema_problem,
)
from analytics_core.manifest.filling import fill

REPOSITORY = Path(analytics_core.__file__).parent.parent

PLUGIN: dict[str, Any] = {
    "kind": "plugin",
    "manifest": 1,
    "name": "shop-watch",
    "entry": "shop_watch.plugin:ShopWatch",
    "hooks": ["setup", "process", "insight"],
    "requires": {"host": ">=0.1", "python": ">=3.11", "plugins": {"user-behavior": ">=0.1"}},
    "after": ["user-behavior"],
    "provides": {
        "routes": ["POST /v1/batch"],
        "analyses": [
            {"name": "baskets", "title": "Baskets", "parameters": {"properties": {"top": {"type": "integer"}}}}
        ],
        "metrics": [{"name": "revenue", "unit": "EUR"}],
        "channels": [{"kind": "pager", "settings": {"properties": {"url": {"type": "string"}}}}],
        "model_types": ["seasonal"],
        "detectors": ["spike"],
    },
    "settings": {
        "properties": {
            "gap": {"type": "integer", "minimum": 1, "default": 30},
            "token": {"type": "string", "writeOnly": True, "pattern": "^t-"},
        }
    },
    "isolation": "thread",
    "limits": {"memory_mb": 256, "cpu_seconds": 10, "call_seconds": 1.5},
    "on_failure": "reject",
    "reload": {"state_version": 2, "strategy": "stop_first"},
    "x-note": "free",
}
METRIC: dict[str, Any] = {
    "kind": "metric",
    "name": "revenue",
    "aggregate": "sum",
    "event": "order",
    "property": "properties.total",
    "where": {"properties.plan": "pro", "name": ["order", "reorder"]},
    "breakdown": ["properties.country"],
    "unit": "EUR",
}
SETTINGS: dict[str, Any] = {
    "kind": "plugin-settings",
    "name": "shop-watch",
    "enabled": True,
    "settings": {"gap": 20},
    "limits": {"call_seconds": 2},
    "isolation": "process",
}
TENANT: dict[str, Any] = {"kind": "tenant", "name": "acme", "timezone": "Europe/Berlin", "retention_days": 30}
COHORT: dict[str, Any] = {
    "kind": "cohort",
    "name": "buyers",
    "all": [
        {"did": {"event": "buy", "where": {"properties.amount": {">": 20}}}, "at_least": 2, "within": "30d"},
        {"did_not": {"event": "refund"}},
        {"has": {"properties.plan": ["pro", "team"]}},
    ],
}

DROP = object()


def changed(good: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(good))
    *above, last = path.split(".")
    part = result
    for key in above:
        part = part[int(key)] if isinstance(part, list) else part[key]
    if value is DROP:
        del part[last]
    else:
        part[int(last) if isinstance(part, list) else last] = value
    return result


def written(tmp_path: Path, *documents: dict[str, Any] | str, name: str = "file.yaml") -> Path:
    path = tmp_path / name
    texts = [d if isinstance(d, str) else yaml.safe_dump(d, sort_keys=False) for d in documents]
    path.write_text("---\n".join(texts), "utf-8")
    return path


def test_the_good_plugin_is_read_whole(tmp_path: Path) -> None:
    manifest = read_plugin(written(tmp_path, PLUGIN))
    assert isinstance(manifest, PluginManifest)
    assert manifest.hooks == ("setup", "process", "insight")
    assert manifest.requires.plugins == {"user-behavior": ">=0.1"}
    assert manifest.provides.analyses[0].parameters == {"properties": {"top": {"type": "integer"}}}
    assert manifest.provides.analyses[0].asked_with is None
    assert (manifest.limits.memory_mb, manifest.limits.call_seconds) == (256, 1.5)
    assert (manifest.reload.state_version, manifest.isolation, manifest.on_failure) == (2, "thread", "reject")
    assert pickle.loads(pickle.dumps(manifest)) == manifest


@pytest.mark.parametrize(("insights", "asked_with"), [(False, None), (True, {}), ({}, {}), ({"top": 3}, {"top": 3})])
def test_an_analysis_is_marked_for_insights_with_its_parameters(tmp_path: Path, insights: Any, asked_with: Any) -> None:
    manifest = read_plugin(written(tmp_path, changed(PLUGIN, "provides.analyses.0.insights", insights)))
    assert manifest.provides.analyses[0].asked_with == asked_with


def test_a_third_party_plugin_is_a_process_unless_it_asks(tmp_path: Path) -> None:
    assert read_plugin(written(tmp_path, changed(PLUGIN, "isolation", DROP))).isolation == "process"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("manifest", DROP, "the key 'manifest' is missing"),
        ("name", DROP, "the key 'name' is missing"),
        ("name", "Shop", "name: 'Shop' does not match"),
        ("name", "shop\n", "name: 'shop\\n' does not match"),
        ("name", 5, "name: 5 is not text"),
        ("hoks", ["process"], "hoks: the key is not known; did you mean 'hooks'?; valid are: manifest, name"),
        ("limits.memory", 5, "limits.memory: the key is not known; did you mean 'memory_mb'?"),
        ("limits.memory_mb", "512", "limits.memory_mb: '512' is not a whole number"),
        ("limits.memory_mb", True, "limits.memory_mb: true is not a whole number"),
        ("limits.memory_mb", 1, "limits.memory_mb: 1 is less than 16"),
        ("limits.call_seconds", 0, "limits.call_seconds: 0 is not more than 0"),
        ("limits.call_seconds", float("inf"), "limits.call_seconds: inf is not a number"),
        ("entry", "shop_watch", "entry: 'shop_watch' does not match"),
        ("hooks", "process", "hooks: 'process' is not a list; write [a, b]"),
        ("hooks", [], "hooks: lists no hook"),
        ("isolation", "threads", "isolation: 'threads' is not valid; valid are: process, thread"),
        ("on_failure", None, "on_failure: null is not valid; valid are: pass, reject"),
        ("requires", ["host"], "requires: a list is not a mapping"),
        ("requires.host", "newest", "requires.host: 'newest' is no version specifier"),
        ("requires.plugins", {"user-behavior": "~"}, "requires.plugins.user-behavior: '~' is no version specifier"),
        ("after", ["shop-watch"], "after: 'shop-watch' cannot come after itself"),
        ("provides.routes.0", "/v1/batch", "provides.routes[0]: '/v1/batch' does not match"),
        ("provides.detectors", ["spike", "spike"], "provides.detectors[1]: 'spike' is provided twice"),
        ("provides.analyses.0.parameters", {"type": "objekt"}, "provides.analyses[0].parameters.type: is no"),
        ("provides.analyses.0.insights", "yes", "provides.analyses[0].insights: 'yes' is neither true nor false"),
        ("provides.analyses.0.insights", {"top": "x"}, "provides.analyses[0].insights: cannot be asked so: top: 'x'"),
        ("provides.analyses.0.insights", {"to": 1}, "provides.analyses[0].insights: cannot be asked so: to: the key"),
        ("provides.channels.0.settings", {"type": "array"}, "provides.channels[0].settings.type: 'array' is not valid"),
        ("settings.properties.gap.minimum", "1", "settings.properties.gap.minimum: is no JSON Schema"),
        ("settings.properties.token.pattern", "(", "settings.properties.token.pattern: is no JSON Schema: '(' is"),
        ("settings.properties.gap.default", 0, "settings.properties.gap.default: 0 is less than the minimum of 1"),
        ("settings.$schema", "http://json-schema.org/draft-07/schema#", "settings.$schema: 'http://json-schema.org"),
        ("reload.strategy", "pickle", "reload.strategy: 'pickle' is not valid; valid are: restart, side_by_side"),
    ],
)  # fmt: skip
def test_a_broken_plugin_manifest_says_what_is_wrong(tmp_path: Path, path: str, value: Any, expected: str) -> None:
    file = written(tmp_path, changed(PLUGIN, path, value))
    with pytest.raises(ManifestError) as raised:
        read_plugin(file)
    assert str(raised.value).startswith(f"{file}: {expected}")
    assert not isinstance(raised.value, IncompatibleError)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("manifest", 2, "manifest: version 2 is not known to this host; valid is: 1"),
        ("requires.host", ">=99", f"requires.host: needs '>=99', this is host {analytics_core.__version__}"),
        ("requires.python", "<3", "requires.python: needs '<3', this is python 3."),
    ],
)
def test_compatibility_is_checked_before_unknown_keys(tmp_path: Path, path: str, value: Any, expected: str) -> None:
    file = written(tmp_path, {**changed(PLUGIN, path, value), "of_a_later_version": 1})
    with pytest.raises(IncompatibleError) as raised:
        read_plugin(file)
    assert expected in str(raised.value)


def test_a_plugin_manifest_takes_nothing_from_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, {**PLUGIN, "description": "costs ${NOTHING}"})
    (manifest,) = read_file(file, {"NOTHING": "5"})
    assert isinstance(manifest, PluginManifest)
    assert manifest.description == "costs ${NOTHING}"


def test_several_kinds_in_one_file(tmp_path: Path) -> None:
    host = {"kind": "host", "server": {"port": 1}}
    read = read_file(written(tmp_path, METRIC, TENANT, SETTINGS, host, "# nothing\n"), {})
    assert [type(m).__name__ for m in read] == [
        "MetricManifest",
        "TenantManifest",
        "PluginSettingsManifest",
        "HostManifest",
    ]
    metric, tenant, settings, _ = read
    assert isinstance(metric, MetricManifest)
    assert metric.where == {"properties.plan": "pro", "name": ["order", "reorder"]}
    assert isinstance(tenant, TenantManifest)
    assert tenant.retention_days == 30
    assert isinstance(settings, PluginSettingsManifest)
    assert settings.limits.call_seconds == 2.0


@pytest.mark.parametrize(
    ("good", "path", "value", "expected"),
    [
        (METRIC, "kind", "metrics", "kind: 'metrics' is not known; did you mean 'metric'? valid are: cohort, host"),
        (METRIC, "kind", "alert", "kind: 'alert' is not known; valid are: cohort, host, metric, plugin, plugin-"),
        (METRIC, "kind", 7, "kind: 7 is not known; valid are: cohort, host"),
        (METRIC, "kind", DROP, "the key 'kind' is missing; valid kinds are: cohort, host"),
        (METRIC, "aggregate", "median", "aggregate: 'median' is not valid; valid are: avg, count"),
        (METRIC, "aggregate", "count", "property: aggregate 'count' counts events and takes no property"),
        (METRIC, "property", DROP, "aggregate: 'sum' needs a 'property'"),
        (METRIC, "events", ["order"], "events: 'event' and 'events' are both given"),
        (METRIC, "where", {"name": {}}, "where.name: is neither one value nor a list of values"),
        (METRIC, "where", {"name": []}, "where.name: is neither one value nor a list of values"),
        (METRIC, "name", "shop.revenue", "name: 'shop.revenue' does not match"),
        (COHORT, "all", [], "all: a list has 0 items; valid are 1 to 20"),
        (COHORT, "all", [{"did": {}}] * 21, "all: a list has 21 items; valid are 1 to 20"),
        (COHORT, "all.0.did.evnt", "buy", "all[0].did.evnt: the key is not known; did you mean 'event'?"),
        (COHORT, "all.0.within", "soon", "all[0].within: 'soon' does not match"),
        (COHORT, "all.0.at_least", 0, "all[0].at_least: 0 is less than 1"),
        (COHORT, "all.1", {}, "all[1]: needs exactly one of 'did', 'did_not' and 'has'; it has none"),
        (COHORT, "all.2.at_least", 2, "all[2].at_least: is for 'did' and 'did_not'"),
        (TENANT, "name", "Acme", "name: 'Acme' does not match"),
        (TENANT, "name", "a" * 64, "name: 'aaaa"),
        (TENANT, "timezone", "Berlin", "timezone: 'Berlin' is no IANA time zone"),
        (TENANT, "timezone", "../etc/passwd", "timezone: '../etc/passwd' is no IANA time zone"),
        (TENANT, "retention_days", 0, "retention_days: 0 is less than 1"),
        (SETTINGS, "enabled", "yes", "enabled: 'yes' is neither true nor false"),
        (SETTINGS, "setings", {}, "setings: the key is not known; did you mean 'settings'?"),
        (SETTINGS, "settings", [], "settings: a list is not a mapping"),
    ],
)  # fmt: skip
def test_a_broken_deployment_manifest_says_what_is_wrong(
    tmp_path: Path, good: dict[str, Any], path: str, value: Any, expected: str
) -> None:
    file = written(tmp_path, changed(good, path, value))
    with pytest.raises(ManifestError) as raised:
        read_file(file, {})
    assert str(raised.value).startswith(f"{file}: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: tenant\nname: a\nname: b\n", "the key 'name' is given twice, in lines 2 and 3"),
        ("kind: tenant\n1: a\n", "the key '1' in line 2 is not text"),
        ("kind: tenant\nname: [\n", "is not YAML: "),
        ("- a\n", "a manifest is a mapping"),
        ("kind: tenant\nname: !!python/object:os.system x\n", "is not YAML: could not determine a constructor"),
        ("a: &a [*a]\n", "levels"),
        ("a: " + "[" * 100_000, "64 levels (line 1)"),
        ("kind: metric\n" + "- " * 50_000, "line 2"),
        ("a: &a {b: *a}\n", "levels"),
        ("kind: tenant\n\n\nname: A\n", "(line 4)"),
        ("kind: metric\nname: a\n---\nkind: tenant\nnames: b\n", "(line 5)"),
    ],
)
def test_yaml_that_is_none_of_ours(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as raised:
        read_file(written(tmp_path, text), {})
    assert expected in str(raised.value)


def test_a_file_that_is_no_text_is_an_error_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"kind: \xff")
    with pytest.raises(ManifestError, match=r"a\.yaml: is not UTF-8 text: byte 6"):
        read_deployment(tmp_path, {})


def test_scalars_are_those_of_json(tmp_path: Path) -> None:
    text = (
        "kind: metric\nname: no\nwhere: {a: no, b: 2025-01-01, c: 12:30:00, d: 0123, e: 1e3, f: true, g: ~, h: 1_0}\n"
    )
    (metric,) = read_file(written(tmp_path, text), {})
    assert isinstance(metric, MetricManifest)
    assert metric.name == "no"
    expected = {
        "a": "no",
        "b": "2025-01-01",
        "c": "12:30:00",
        "d": "0123",
        "e": 1000.0,
        "f": True,
        "g": None,
        "h": "1_0",
    }
    assert metric.where == expected


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = "kind: metric\nname: a\nx-base: &base {plan: pro, name: b}\nwhere: {<<: *base, name: c}\n"
    (metric,) = read_file(written(tmp_path, text), {})
    assert isinstance(metric, MetricManifest)
    assert metric.where == {"plan": "pro", "name": "c"}


# --- references ------------------------------------------------------------------------------------------------------


def filled(tmp_path: Path, text: str, environ: dict[str, str]) -> Any:
    (metric,) = read_file(written(tmp_path, f"kind: metric\nname: a\nwhere: {{v: {text!r}}}\n"), environ)
    assert isinstance(metric, MetricManifest)
    assert metric.where is not None
    return metric.where["v"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "1"),
        ("x${A}y${B}z", "1".join("xy") + "2z"),
        ("${C:-none}", "none"),
        ("${C:-}", ""),
        ("${EMPTY:-full}", "full"),
        ("${EMPTY}", ""),
        ("${C:-${D:-${A}}}", "1"),
        ("${C:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$A {A} $", "$A {A} $"),
        ("${file:secret}", "hush"),
        ("${file:absent:-fallback}", "fallback"),
    ],
)
def test_references_are_filled_in(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "secret").write_text("hush\n", "utf-8")
    assert filled(tmp_path, text, {"A": "1", "B": "2", "EMPTY": ""}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${MISSING}", "where.v: the environment variable MISSING is not set and has no default"),
        ("${C:-${MISSING}}", "the environment variable MISSING"),
        ("${open", "has a '${' without its '}'"),
        ("${C:-${open}", "has a '${' without its '}'"),
        ("${a b}", "${a b} is no reference"),
        ("${file:absent}", "absent does not exist"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as raised:
        filled(tmp_path, text, {})
    assert expected in str(raised.value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="$")))
def test_a_value_from_the_environment_is_never_read_again(value: str) -> None:
    assert fill("<${V}>", {"V": value + "${W}"}, Path()) == f"<{value}${{W}}>"


def test_text_from_the_environment_becomes_what_the_field_asks_for(tmp_path: Path) -> None:
    text = (
        "kind: plugin-settings\nname: shop-watch\nenabled: ${ON}\nlimits: {memory_mb: '${MB}', call_seconds: '${S}'}\n"
        "isolation: ${ISOLATION}\nsettings: {gap: '${MB}'}\n"
    )
    path = written(tmp_path, text)
    (read,) = read_file(path, {"ON": "off", "MB": "64", "S": "0.5", "ISOLATION": ""})
    assert isinstance(read, PluginSettingsManifest)
    assert (read.enabled, read.limits.memory_mb, read.limits.call_seconds, read.isolation) == (False, 64, 0.5, None)
    assert isinstance(read.settings["gap"], Filled)
    with pytest.raises(
        ManifestError, match=r"limits.memory_mb: '6x' is not a whole number; it comes from MB \(line 4\)"
    ):
        read_file(path, {"ON": "1", "MB": "6x", "S": "1", "ISOLATION": "thread"})


# --- the directory ---------------------------------------------------------------------------------------------------


def test_a_directory_is_one_deployment(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    written(tmp_path, METRIC, changed(METRIC, "name", "orders"), name="metrics.yaml")
    written(tmp_path / "more", TENANT, SETTINGS, name="rest.yml")
    written(tmp_path, {"kind": "host", "server": {"port": "${P:-5}"}}, name="host.yaml")
    written(tmp_path, "not: [read", name=".hidden.yaml")
    deployment = read_deployment(tmp_path, {})
    assert sorted(deployment.metrics) == ["orders", "revenue"]
    assert list(deployment.tenants) == ["acme"]
    assert deployment.plugins["shop-watch"].settings == {"gap": 20}
    assert deployment.host == {"server": {"port": "5"}}


def test_a_missing_directory_is_an_empty_deployment(tmp_path: Path) -> None:
    assert read_deployment(tmp_path / "none", {}).metrics == {}
    with pytest.raises(ManifestError, match="is no directory"):
        read_deployment(written(tmp_path, METRIC), {})


@pytest.mark.parametrize("document", [METRIC, TENANT, SETTINGS, COHORT])
def test_a_name_that_two_files_take_names_both(tmp_path: Path, document: dict[str, Any]) -> None:
    first = written(tmp_path, document, name="a.yaml")
    second = written(tmp_path, document, name="b.yaml")
    with pytest.raises(ManifestError) as raised:
        read_deployment(tmp_path, {})
    assert str(raised.value).startswith(f"{second}: {document['kind']}")
    assert f"is declared already in {first} (line 1)" in str(raised.value)


def test_one_name_for_two_kinds_is_no_clash(tmp_path: Path) -> None:
    written(tmp_path, changed(METRIC, "name", "acme"), TENANT)
    assert list(read_deployment(tmp_path, {}).metrics) == ["acme"]


@pytest.mark.parametrize("name", ["host.yml", "server.yaml", "more/host.yaml"])
def test_settings_of_the_host_in_another_file_are_not_passed_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "more").mkdir()
    written(tmp_path, {"kind": "host"}, name=name)
    with pytest.raises(ManifestError, match=f"'host' is read from {tmp_path}/host.yaml alone"):
        read_deployment(tmp_path, {})


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to(tmp_path / "manifests")
    with pytest.raises(ManifestError, match="cannot be read: Too many levels of symbolic links"):
        read_deployment(tmp_path / "manifests", {})


def test_a_package_manifest_does_not_belong_into_a_deployment(tmp_path: Path) -> None:
    written(tmp_path, PLUGIN)
    with pytest.raises(ManifestError, match="'plugin' belongs into a plugin's package"):
        read_deployment(tmp_path, {})


def test_the_shipped_manifests_are_good() -> None:
    deployment = read_deployment(REPOSITORY / "manifests", {})
    assert {"user-behavior", "performance", "predictive"} <= deployment.plugins.keys()


# --- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(config.schemas()))
def test_the_shipped_schemas_are_up_to_date(kind: str) -> None:
    path = Path(analytics_core.__file__).parent / "schemas" / f"{kind}.json"
    assert json.loads(path.read_text("utf-8")) == config.schemas()[kind], (
        "run: analytics schemas analytics_core/schemas"
    )
    jsonschema.Draft202012Validator.check_schema(config.schemas()[kind])


@pytest.mark.parametrize("good", [PLUGIN, METRIC, SETTINGS, TENANT, COHORT], ids=lambda d: d["kind"])
def test_the_schemas_take_the_good_and_refuse_a_typo(good: dict[str, Any]) -> None:
    schema = jsonschema.Draft202012Validator(config.schemas()[good["kind"]])
    schema.validate({**good, "x-free": 1})
    assert list(schema.iter_errors({**good, "nmae": 1}))
    assert list(schema.iter_errors(changed(good, "name", DROP)))


def test_a_reference_may_stand_for_a_number_in_deployments_only() -> None:
    tenant = jsonschema.Draft202012Validator(config.schemas()["tenant"])
    tenant.validate({**TENANT, "retention_days": "${DAYS:-3}"})
    assert list(tenant.iter_errors({**TENANT, "retention_days": "3"}))
    plugin = jsonschema.Draft202012Validator(config.schemas()["plugin"])
    assert list(plugin.iter_errors(changed(PLUGIN, "limits.memory_mb", "${MB}")))


# --- plugin settings -------------------------------------------------------------------------------------------------

SHOP: dict[str, Any] = {
    "type": "object",
    "required": ["token"],
    "properties": {
        "gap": {"type": "integer", "minimum": 1, "maximum": 60, "default": 30},
        "mode": {"enum": ["fast", "exact"], "default": "fast"},
        "token": {"type": "string", "writeOnly": True, "pattern": "^t-"},
        "retry": {"properties": {"times": {"type": "integer", "default": 3}}, "additionalProperties": False},
        "ratio": {"type": ["number", "null"]},
        "names": {"type": "array", "items": {"type": "string"}},
        "vault": {"type": "object", "writeOnly": True, "properties": {"pin": {"type": "integer"}}},
    },
}  # fmt: skip


def shop(tmp_path: Path) -> PluginManifest:
    return read_plugin(written(tmp_path, {**PLUGIN, "settings": SHOP}))


def test_settings_are_given_with_their_defaults(tmp_path: Path) -> None:
    given = {"token": "t-1", "names": ["a"]}
    settings = checked_settings(shop(tmp_path), given)
    assert settings == {"gap": 30, "mode": "fast", "token": "t-1", "retry": {"times": 3}, "names": ["a"]}
    assert given == {"token": "t-1", "names": ["a"]}


def test_settings_from_the_environment_take_the_schema_s_types(tmp_path: Path) -> None:
    environ = {"gap": "5", "token": "t-7", "ratio": "0.5", "names": "a, b", "retry": {"times": Filled("2")}}
    filled_in = {key: Filled(value) if isinstance(value, str) else value for key, value in environ.items()}
    settings = checked_settings(shop(tmp_path), filled_in)
    assert (settings["gap"], settings["ratio"], settings["names"], settings["retry"]) == (
        5,
        0.5,
        ["a", "b"],
        {"times": 2},
    )
    assert type(settings["token"]) is str
    assert checked_settings(shop(tmp_path), {"token": "t-", "ratio": Filled("")})["ratio"] is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gap": "5"}, "settings.gap: '5' is not of type 'integer'; valid is: integer, at least 1, at most 60"),
        ({"gap": 0}, "settings.gap: 0 is less than the minimum of 1; valid is: integer, at least 1"),
        ({"gap": Filled("x")}, "settings.gap: 'x' is not of type 'integer'"),
        ({"mode": "slow"}, "settings.mode: 'slow' is not one of ['fast', 'exact']; valid is: one of 'fast', 'exact'"),
        ({"gapp": 1}, "settings.gapp: the key is not known; did you mean 'gap'?"),
        ({"retry": {"time": 1}}, "settings.retry.time: the key is not known; did you mean 'times'?"),
        ({"token": None}, "settings.token: the value (hidden) does not fit; valid is: string, matching ^t-"),
        ({"names": ["a", 1]}, "settings.names[1]: 1 is not of type 'string'"),
    ],
)
def test_wrong_settings_name_plugin_key_and_what_is_valid(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(PluginSettingsError) as raised:
        checked_settings(shop(tmp_path), {"token": "t-1", **change})
    assert str(raised.value).startswith(f"Plugin 'shop-watch': {expected}")


def test_a_missing_setting_says_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(PluginSettingsError, match=r"settings\.token: is missing; valid is: string, matching \^t-"):
        checked_settings(shop(tmp_path), {})


@pytest.mark.parametrize("change", [{"token": "s3cret"}, {"vault": {"pin": "s3cret"}}, {"vault": "s3cret"}])
def test_secrets_are_in_no_message(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(PluginSettingsError) as raised:
        checked_settings(shop(tmp_path), {"token": "t-1", **change})
    assert "s3cret" not in str(raised.value)
    assert "hidden" in str(raised.value)


def test_a_plugin_without_settings_takes_none() -> None:
    assert fit_schema({}, {}) == ({}, [])
    assert fit_schema({}, {"a": 1})[1] == [("a", "the key is not known; there is nothing to set")]


_KEYWORDS = st.sampled_from(
    [
        "type",
        "minimum",
        "minLength",
        "required",
        "enum",
        "items",
        "title",
        "writeOnly",
        "pattern",
        "properties",
        "$defs",
    ]
)
_SCHEMAS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["string", "object", "x", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS, inner, max_size=3),
)


@given(st.dictionaries(_KEYWORDS, _SCHEMAS, max_size=3))
def test_the_fast_check_of_a_schema_takes_nothing_that_the_metaschema_refuses(schema: dict[str, Any]) -> None:
    metaschema = jsonschema.Draft202012Validator(
        jsonschema.Draft202012Validator.META_SCHEMA, format_checker=jsonschema.FormatChecker(["regex"])
    )
    is_object = schema.get("type", "object") == "object"
    assert (schema_problem(schema) is None) == (metaschema.is_valid(schema) and is_object)


def test_a_value_that_does_not_fit_is_told_with_an_example_and_a_list_with_its_length() -> None:
    parts = {"window": {"type": "string", "default": "1d"}, "steps": {"type": "array", "minItems": 2, "maxItems": 3}}
    _, problems = fit_schema({"properties": parts}, {"window": 0, "steps": [1] * 4})
    assert problems == [
        ("steps", "has 4 items; valid is: array, at least 2 items, at most 3 items"),
        ("window", "0 is not of type 'string'; valid is: string, such as '1d'"),
    ]


def test_a_schema_s_reference_is_never_fetched() -> None:
    _, problems = fit_schema({"properties": {"a": {"$ref": "https://example.org/schema.json"}}}, {"a": 1})
    assert problems == [("", "the schema's $ref 'https://example.org/schema.json' leads nowhere")]
