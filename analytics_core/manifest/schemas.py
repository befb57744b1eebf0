"""JSON Schemas of the manifest kinds, generated from the models, so that editors complete and check them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgspec
from msgspec import NODEFAULT, Struct

from analytics_core.manifest.cohorts import CohortManifest
from analytics_core.manifest.models import MetricManifest, PluginManifest, PluginSettingsManifest, TenantManifest

_MODELS: Final[dict[str, type[Struct]]] = {
    "cohort": CohortManifest,
    "metric": MetricManifest,
    "plugin": PluginManifest,
    "plugin-settings": PluginSettingsManifest,
    "tenant": TenantManifest,
}
_REFERENCE: Final = {"type": "string", "pattern": r"\$\{"}


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each kind but ``host``, whose model is `config.Settings` (see `config.schemas`)."""
    return {kind: schema_of(kind, model) for kind, model in _MODELS.items()}


def schema_of(kind: str, model: type[Struct]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind: ``kind`` is required, ``x-`` keys are free.

    In deployment kinds a ``${...}`` reference may stand for any number, truth value, list or chosen word.
    """
    (top,), parts = msgspec.json.schema_components([_textual(model)], ref_template="#/$defs/{name}")
    definitions = {name: _open(part, filled=kind != "plugin") for name, part in parts.items()}
    schema = definitions.pop(str(top["$ref"]).rpartition("/")[2])
    schema["properties"] = {"kind": {"const": kind}, **schema["properties"]}
    schema["required"] = ["kind", *schema.get("required", ())]
    schema["title"] = f"kind: {kind}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:analytics-core:manifest:{kind}"}
    plain = msgspec.json.decode(
        msgspec.json.encode({**head, **schema, **({"$defs": definitions} if definitions else {})})
    )
    assert isinstance(plain, dict)
    return plain


def _textual(model: type[Struct]) -> type[Struct]:
    """``model`` as it is written: paths are text. The generator cannot show a default that is a `Path`."""
    hints = get_type_hints(model, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(model):
        kind, default = hints[field.name], field.default
        if isinstance(kind, type) and issubclass(kind, Struct):
            fields.append((field.name, _textual(kind), msgspec.field(default_factory=dict)))
        elif default is NODEFAULT and field.default_factory is NODEFAULT:
            fields.append((field.name, kind, msgspec.field()))
        elif default is NODEFAULT:
            fields.append((field.name, kind, msgspec.field(default_factory=field.default_factory)))
        else:
            written = {Path: str, Path | None: str | None}.get(kind, kind)
            fields.append((field.name, written, str(default) if isinstance(default, Path) else default))
    made = msgspec.defstruct(model.__name__, fields, kw_only=True, forbid_unknown_fields=True)
    made.__doc__ = model.__doc__
    return made


def _open(part: dict[str, Any], *, filled: bool) -> dict[str, Any]:
    opened = dict(part)
    if "description" in part:
        opened["description"] = inspect.cleandoc(part["description"])
    opened["patternProperties"] = {"^x-": {}}
    properties = part.get("properties", {})
    opened["properties"] = {name: _or_reference(value) if filled else value for name, value in properties.items()}
    return opened


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [part.get("type") for part in schema.get("anyOf", [schema])]
    if "$ref" in schema or (any(kind in ("object", "string") for kind in kinds) and "pattern" not in schema):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("default", "description")}
    outer = {key: value for key, value in schema.items() if key in ("default", "description")}
    return {"anyOf": [*kept.get("anyOf", [kept]), _REFERENCE], **outer}
