"""Settings against an author's JSON Schema: the quick way and jsonschema say the same."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jsonschema
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analytics_core.manifest import fit_schema

NUMBERS = st.integers(-3, 3) | st.sampled_from([-0.5, 1.0, 2.5])
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "ab", "1"])
KEYS = st.sampled_from(["a", "b"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=5
)
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "enum": st.lists(SCALARS, min_size=1, max_size=3),
        "const": SCALARS,
        "pattern": st.sampled_from(["a", "^b", "$"]),
        "required": st.lists(KEYS, unique=True),
        "properties": st.dictionaries(KEYS, inner, max_size=2),
        "additionalProperties": inner,
        "items": inner,
        "anyOf": st.lists(inner, min_size=1, max_size=2),
        "title": st.just("A title"),
        "writeOnly": st.booleans(),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), st.integers(0, 2)),
    }
    chosen = st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: keywords[name] for name in names}))


@settings(deadline=None, max_examples=300)
@given(st.recursive(st.booleans(), parts, max_leaves=4), VALUES)
@example({"type": "integer"}, 2.5)
@example({"type": ["number", "null"]}, True)
@example({"enum": [1]}, True)
@example({"minimum": 1}, 0)
@example({"maximum": 0}, 0)
@example({"exclusiveMinimum": 0}, 0)
@example({"exclusiveMaximum": 0}, 0)
@example({"minLength": 2}, "a")
@example({"maxLength": 1}, "a")
@example({"additionalProperties": False}, {"a": 1})
@example({"properties": {"a": {"maximum": 1}}, "required": ["a"]}, {"a": 1})
def test_settings_are_taken_exactly_when_jsonschema_takes_them(part: Any, value: Any) -> None:
    schema = {"properties": {"key": part}}
    expected = jsonschema.Draft202012Validator(schema).is_valid({"key": value})
    assert (not fit_schema(schema, {"key": value})[1]) == expected


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    whole = {"type": "integer", "maximum": 5}
    schema = {"properties": {"n": whole, "x": {"type": "number"}, "listed": {"items": {"properties": {"n": whole}}}}}
    values, problems = fit_schema(schema, {"n": 5.0, "x": 5.0, "listed": [{"n": 3.0}]})
    assert not problems
    assert [type(each) for each in (values["n"], values["x"], values["listed"][0]["n"])] == [int, float, int]
    assert fit_schema(schema, {"n": 2.5})[1][0][0] == "n"


def test_plain_settings_need_no_jsonschema() -> None:
    code = """
import sys
from analytics_core.manifest import fit_schema, schema_problem
schema = {"type": "object", "properties": {"limit": {"type": "integer", "minimum": 1, "default": 3}}}
print(schema_problem(schema, defaults=True), fit_schema(schema, {}), "jsonschema" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None ({'limit': 3}, []) False\n"
