"""The description of the HTTP interface (OpenAPI 3.1), made of the table of methods.

Nothing is written twice: each method comes from the table, and its texts are the docstrings. The
description is made without the settings, so it cannot contain a secret.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, Final

import msgspec

from repeater import __version__
from repeater.api.answers import ERROR_MODE_HEADER, TRANSPORT_MODE, ApiError, Failure, statuses
from repeater.api.method import Method
from repeater.api.methods import COMMANDS, METHODS
from repeater.api.schemas import PREFIX, Schemas, for_readers, result_of
from repeater.api.stream import STREAM, StreamAnswer

_JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"
_ABOUT: Final = """\
Calls for back ends. Every call is a `POST` with a JSON object; unknown fields are ignored. A call
that fails is answered 200 with `error`. With the header `X-Centrifugo-Error-Mode: transport`, it
is answered with the error's own status and the bare error object. The error's `message` begins with
the code's text, and then says why: it names the field that is wrong.
Subscribers come by WebSocket and are not described here."""

# Answers that are sent before a call is made, or instead of one. Each has an error object.
_NO_CALLS: Final = {
    "400": "The body is not JSON",
    "401": "No API key, or a wrong one",
    "408": "The body did not come in time",
    "413": "The body is too long",
    "503": "Fan-out made no room in time; try later",
}
_HEALTH: Final = {
    "health": ("/health", "The node takes clients", "It shuts down"),
    "live": ("/health/live", "The process runs", ""),
    "ready": (
        "/health/ready",
        "The node takes clients and its broker works",
        "It shuts down, or the broker is down",
    ),
}
"""By operation: the path, the meaning of 200, and the meaning of 503 or empty without one."""
_SECURITY: Final = {
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "authorization": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`apikey <key>`",
    },
    "query": {"type": "apiKey", "in": "query", "name": "api_key"},
}


@cache
def document(root: str = "") -> bytes:
    """The description as JSON text, made once for each process.

    Args:
        root: The path in front of all paths, from the settings.
    """
    schemas = Schemas()
    paths = {f"/api/{name}": {"post": _call(name, one, schemas)} for name, one in METHODS.items()}
    paths[f"/api/{STREAM}"] = {"post": _stream(schemas)}
    for name, (path, up, down) in _HEALTH.items():
        paths[path] = {"get": _health(name, up, down)}
    components = schemas.components()
    for method in METHODS.values():
        components[method.body.__name__]["required"] = list(method.needs)
    _describe_batch(components)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Repeater", "version": __version__, "description": _ABOUT},
            **({"servers": [{"url": root}]} if root else {}),
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": _SECURITY},
            "security": [{name: []} for name in _SECURITY],
        }
    )


def _call(name: str, method: Method, schemas: Schemas) -> dict[str, Any]:
    """The operation of one method."""
    summary, description = _texts(method.call)
    result = schemas.of(result_of(method.call), written=True)
    if method.wrapped:
        result = _object(result=result)
    failure = schemas.of(Failure, written=True)
    body = schemas.of(method.body, written=False)
    return {
        "operationId": name,
        "tags": ["Server API"],
        "summary": summary,
        "description": description,
        "parameters": [_error_mode()],
        "requestBody": {"required": True, "content": {_JSON: {"schema": body}}},
        "responses": {
            **_responses(schemas),
            "200": _content("The result, or the error", {"anyOf": [result, failure]}),
        },
    }


def _responses(schemas: Schemas) -> dict[str, Any]:
    """The responses other than 200: those before a call, and those of transport mode."""
    meanings = {status: [meaning] for status, meaning in _NO_CALLS.items()}
    for status, codes in statuses().items():
        numbers = ", ".join(map(str, codes))
        meanings.setdefault(str(status), []).append(f"in transport mode: error {numbers}")
    error = {"anyOf": [schemas.of(one, written=True) for one in (Failure, ApiError)]}
    return {status: _content("; ".join(meanings[status]), error) for status in sorted(meanings)}


def _stream(schemas: Schemas) -> dict[str, Any]:
    """The operation of the stream, whose body is many JSON objects, one a line."""
    summary = schemas.of(StreamAnswer, written=True)
    failure = {"anyOf": [schemas.of(one, written=True) for one in (Failure, ApiError)]}
    meanings = {
        "200": "The whole body was taken",
        "400": "Broken off: the body's framing is wrong",
        "408": "Broken off: nothing came for too long",
        "503": "Broken off: fan-out made no room in time, or the server shuts down",
    }
    responses: dict[str, Any] = {
        status: _content(meaning, summary) for status, meaning in meanings.items()
    }
    responses["401"] = _content(_NO_CALLS["401"], failure)
    return {
        "operationId": STREAM,
        "tags": ["Server API"],
        "summary": "Publish events without end on one request, a JSON object a line.",
        "description": "Each line is a body of `publish`. The line is published as it arrives, and "
        "fails alone. The answer comes when the body ends.",
        "requestBody": {"required": True, "content": {_NDJSON: {"schema": {"type": "string"}}}},
        "responses": responses,
    }


def _health(name: str, up: str, down: str) -> dict[str, Any]:
    status = {"type": "string"}
    answer = {"type": "object", "properties": {"status": status, "reason": status}}
    responses = {"200": _content(up, {**answer, "required": ["status"]})}
    if down:
        responses["503"] = _content(down, {**answer, "required": ["status"]})
    return {
        "operationId": name,
        "tags": ["Operations"],
        "summary": f"{up}?",
        "description": "For load balancers and orchestrators. No API key is needed.",
        "security": [],
        "responses": responses,
    }


def _describe_batch(components: dict[str, Any]) -> None:
    """Describe a batch's items: each has the name and the body of a method.

    The type of an item says only JSON, because `batch` decodes each item later.
    """
    choices = [
        _object(**{name: {"$ref": f"{PREFIX}{one.body.__name__}"}})
        for name, one in COMMANDS.items()
    ]
    components["BatchBody"]["properties"]["commands"]["items"] = {"anyOf": choices}


def _error_mode() -> dict[str, Any]:
    return {
        "name": ERROR_MODE_HEADER,
        "in": "header",
        "description": "`transport`: errors get their own HTTP statuses",
        "schema": {"type": "string", "enum": [TRANSPORT_MODE]},
    }


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _texts(call: Any) -> tuple[str, str]:
    """A docstring's first paragraph, and the others up to `Args` or `Raises`.

    Those two sections are for people who change the server.
    """
    text = inspect.getdoc(getattr(call, "func", call)) or ""
    text = text.partition("\n\nRaises:")[0].partition("\n\nArgs:")[0]
    summary, _, rest = text.partition("\n\n")
    return for_readers(summary), for_readers(rest)
