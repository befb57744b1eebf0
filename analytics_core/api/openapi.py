"""The OpenAPI 3.1 document, made from the same `Operation` list as the routes."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import msgspec

from analytics_core.api.operations import Content, Operation

_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457. Some types have further members: 'rejected', 'parameter'.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "the request id, also in X-Request-Id"},
    },
}
_SECURITY: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key or a JWT (HS256: sub, tenant, role)"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_SECURITY_IN_QUERY: Final[dict[str, Any]] = {"keyInQuery": {"type": "apiKey", "in": "query", "name": "api_key"}}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """All operations, their parameters, bodies, replies and refusals."""
    types = {content.schema for o in operations for content in _contents(o) if isinstance(content.schema, type)}
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Analytics", "version": version("analytics-core"), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM},
            "securitySchemes": {**_SECURITY, **_SECURITY_IN_QUERY},
        },
    }


def _contents(operation: Operation) -> list[Content]:
    return [*operation.replies.values(), *([operation.body] if operation.body else [])]


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{operation.path.strip('/').replace('/', '_') or 'index'}",
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {str(status): _content(content) for status, content in operation.replies.items()},
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [
            {"name": p.name, "in": p.place, "description": p.description, "required": p.required, "schema": p.schema}
            for p in operation.parameters
        ]
    if operation.body:
        described["requestBody"] = {"required": True, **_content(operation.body)}
    schemes = [*_SECURITY, *(_SECURITY_IN_QUERY if operation.key_in_query else ())]
    described["security"] = [{}] if operation.role == "none" else [{name: []} for name in schemes]
    if operation.role != "none":
        described["x-role"] = operation.role
    refusals = {*operation.refusals, *((401, 403) if operation.role != "none" else ())}
    for status in sorted(refusals):
        described["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return described


def _content(content: Content) -> dict[str, Any]:
    schema = content.schema
    if isinstance(schema, type):
        schema = {"$ref": _REF.format(name=schema.__name__)}
    return {"description": content.description, "content": {type_: {"schema": schema} for type_ in content.types}}
