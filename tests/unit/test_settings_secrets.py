"""What a settings schema marks as ``writeOnly`` is shown by nobody, wherever in the schema it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analytics_core.manifest import MASK, fit_schema, masked
from tests.unit.cli_plugins_site import NOBODY, Site

SECRET = {"type": "string", "writeOnly": True}
LONG: dict[str, Any] = {f"r{n}": {"$ref": f"#/$defs/r{n + 1}"} for n in range(20)} | {"r20": SECRET}
HIDDEN: list[tuple[dict[str, Any], Any, Any]] = [
    ({"properties": {"a": SECRET}}, {"a": "x", "b": "y"}, {"a": MASK, "b": "y"}),
    ({"properties": {"a": SECRET}}, {"a": ""}, {"a": ""}),
    ({"properties": {"a": SECRET}}, {"a": 0}, {"a": MASK}),
    ({"properties": {"a": {"properties": {"b": SECRET}}}}, {"a": {"b": 1, "c": 2}}, {"a": {"b": MASK, "c": 2}}),
    ({"additionalProperties": SECRET}, {"a": "x"}, {"a": MASK}),
    ({"unevaluatedProperties": SECRET}, {"a": "x"}, {"a": MASK}),
    ({"patternProperties": {"_key$": SECRET}}, {"my_key": "x", "key": "y"}, {"my_key": MASK, "key": "y"}),
    ({"properties": {"a": {"anyOf": [{"type": "null"}, SECRET]}}}, {"a": "x"}, {"a": MASK}),
    ({"if": {}, "then": {"properties": {"a": SECRET}}}, {"a": "x"}, {"a": MASK}),
    ({"dependentSchemas": {"b": {"properties": {"a": SECRET}}}}, {"a": "x", "b": 1}, {"a": MASK, "b": 1}),
    ({"properties": {"a": {"items": SECRET}}}, {"a": ["x", "y"]}, {"a": [MASK, MASK]}),
    ({"properties": {"a": {"prefixItems": [{}, SECRET]}}}, {"a": ["x", "y", "z"]}, {"a": ["x", MASK, "z"]}),
    ({"$defs": {"r": SECRET}, "properties": {"a": {"$ref": "#/$defs/r"}}}, {"a": "x"}, {"a": MASK}),
    ({"$defs": LONG, "properties": {"a": {"$ref": "#/$defs/r0"}}}, {"a": "x"}, {"a": MASK}),
    ({"properties": {"a": SECRET, "b": {"$ref": "#/properties/a"}}}, {"b": "x"}, {"b": MASK}),
    ({"$defs": {"r": SECRET | {"$anchor": "key"}}, "properties": {"a": {"$ref": "#key"}}}, {"a": "x"}, {"a": MASK}),
    (
        {"properties": {"key": SECRET, "next": {"$ref": "#"}}},
        {"next": {"next": {"key": "x", "b": "y"}}},
        {"next": {"next": {"key": MASK, "b": "y"}}},
    ),
    ({"properties": {"a": {"$ref": "#/$defs/nowhere"}}}, {"a": "x"}, {"a": MASK}),
    ({"$defs": {"r": {"$ref": "#/$defs/r"}}, "properties": {"a": {"$ref": "#/$defs/r"}}}, {"a": "x"}, {"a": "x"}),
    (SECRET, {"a": "x"}, {}),
]


@pytest.mark.parametrize(("schema", "values", "shown"), HIDDEN)
def test_secrets_are_hidden_wherever_they_are(schema: Any, values: Any, shown: Any) -> None:
    assert masked(schema, values) == shown


@pytest.mark.parametrize(
    ("schema", "given"),
    [
        ({"$defs": {"r": SECRET}, "properties": {"a": {"$ref": "#/$defs/r", "minLength": 20}}}, {"a": "s3cret"}),
        ({"properties": {"a": {"allOf": [SECRET, {"minLength": 20}]}}}, {"a": "s3cret"}),
        ({"properties": {"a": SECRET}, "allOf": [{"properties": {"a": {"maxLength": 1}}}]}, {"a": "s3cret"}),
        ({"$defs": {"r": SECRET}, "additionalProperties": {"$ref": "#/$defs/r", "pattern": "^t-"}}, {"a": "s3cret"}),
        ({"properties": {"a": {"writeOnly": True, "items": {"maxLength": 1}}}}, {"a": ["s3cret"]}),
    ],
)
def test_a_secret_that_does_not_fit_is_not_in_the_message(schema: dict[str, Any], given: dict[str, Any]) -> None:
    _, problems = fit_schema(schema, given)
    assert problems
    assert all("the value (hidden) does not fit" in text for _, text in problems)


def test_a_reference_to_itself_is_a_problem_and_no_crash() -> None:
    schema = {"$defs": {"r": {"$ref": "#/$defs/r"}}, "properties": {"a": {"$ref": "#/$defs/r"}}}
    assert fit_schema(schema, {"a": 1})[1] == [("", "the schema's $ref leads to itself")]


def test_no_command_shows_a_secret_behind_a_reference(tmp_path: Path) -> None:
    site = Site(tmp_path)
    properties = {"key": {"$ref": "#/$defs/key"}, "server": {"type": "object", "default": {"key": "s3cret"}}}
    properties["server"]["properties"] = {"key": {"$ref": "#/$defs/key"}}
    site.plugin("shop", settings={"properties": properties, "$defs": {"key": {**SECRET, "pattern": "^s"}}})
    site.operator("shop", settings={"key": "s3cret"})
    told = site.json("inspect", "shop", *NOBODY)["settings"]["effective"]
    assert told == {"key": MASK, "server": {"key": MASK}}
    assert "s3cret" not in site.run("inspect", "shop", *NOBODY).stdout
    site.operator("shop", settings={"key": "not-s3cret"})
    for command in (("why", "shop"), ("inspect", "shop"), ("list",)):
        shown = site.run(*command, *NOBODY).output
        assert "(hidden)" in shown
        assert "not-s3cret" not in shown + json.dumps(site.json(*command, *NOBODY))
