"""The OpenAPI document: Litestar's paths, our records' schemas, and the device side, which Litestar does not serve.

Litestar's own schemas drop that unknown fields are refused, and docstrings; so they are taken from msgspec.
"""

import math
from functools import cache
from typing import Any

import msgspec
from litestar import Litestar
from litestar._openapi.plugin import OpenAPIPlugin
from litestar._openapi.schema_generation import SchemaCreator
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

import edgewright
from edgewright.contract.api.device_api import (
    PROOF,
    CheckInRequest,
    CheckInResponse,
    EnrolRequest,
    EnrolResponse,
    ErrorResponse,
)

__all__ = ["RecordSchemaPlugin", "openapi_document"]

_DESCRIPTION = """\
The control plane of a fleet. Operators ask with a token; devices sign their requests. The repository's files are
under `/repo/`, by the names that the repository has for them, and need neither; letters for private sums go to
`/sums/`. Whatever is refused is told as an `ErrorResponse`.
"""
_REF = "#/components/schemas/{name}"
_DEVICE = (EnrolRequest, EnrolResponse, CheckInRequest, CheckInResponse, ErrorResponse)


class RecordSchemaPlugin(OpenAPISchemaPlugin):
    """Has Litestar name our records, and leaves their schemas to msgspec."""

    def __init__(self) -> None:
        self.seen: set[type[msgspec.Struct]] = set()

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Whether it is one of our records."""
        return not field_definition.is_union and field_definition.is_subclass_of(msgspec.Struct)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: SchemaCreator) -> Schema:
        """Return an empty schema of its name, which is filled in later."""
        self.seen.add(field_definition.annotation)
        return schema_creator.create_component_schema(field_definition, required=[], property_fields={})


@cache
def openapi_document(app: Litestar) -> bytes:
    """Return the document, JSON."""
    plugin = app.plugins.get(OpenAPIPlugin)
    # Only now, so that Litestar adds no routes of its own for it.
    plugin._openapi_config = OpenAPIConfig(
        title="Edgewright", version=edgewright.__version__, description=_DESCRIPTION
    )
    document = plugin.provide_openapi().to_schema()
    seen = app.plugins.get(RecordSchemaPlugin).seen
    records: list[type[msgspec.Struct]] = sorted({*_DEVICE, *seen}, key=lambda each: each.__name__)
    _, schemas = msgspec.json.schema_components(records, ref_template=_REF)
    for schema in schemas.values():
        for known in schema.get("properties", {}).values():
            if known.get("default") == math.inf:
                del known["default"]  # JSON has no such number
    document.setdefault("components", {})["schemas"] = schemas
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Of 'edgewright fleet', or of the page."},
        "proof": {"type": "apiKey", "in": "header", "name": PROOF, "description": "A device's signature."},
    }
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            _complete_operation(path, verb, operation)
    document["paths"] |= _device_paths()
    return msgspec.json.encode(document)


def _complete_operation(path: str, verb: str, operation: dict[str, Any]) -> None:
    """Say what every route of operators may answer, and what it takes."""
    if path.startswith("/api/") or path == "/metrics":
        operation["security"] = [{"token": []}]
    for parameter in operation.get("parameters", ()):
        for schema in (parameter["schema"], *parameter["schema"].get("oneOf", ())):
            if "default" in schema and schema["default"] is None:
                del schema["default"]  # what is left out is of no type
    problem = {"application/json": {"schema": {"$ref": _REF.format(name="ErrorResponse")}}}
    for status, words in (
        ("400", "The request cannot be read, or asks for what is not allowed."),
        ("401", "Nobody known asks."),
        ("403", "Whoever asks may not."),
        ("404", "There is no such thing."),
        ("409", "It cannot be done now."),
        ("413", "The request is too large."),
        ("429", "Too many requests."),
        ("503", "The database or the store does not answer."),
    ):
        operation["responses"][status] = {"description": words, "content": problem}
    if path == "/api/jobs" and verb == "post":
        operation["requestBody"] = {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }


def _device_paths() -> dict[str, Any]:
    def said(record: type[msgspec.Struct]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": _REF.format(name=record.__name__)}}}}

    def operation(name: str, summary: str, answers: dict[str, Any], **more: Any) -> dict[str, Any]:
        refused = {
            status: {"description": words, **said(ErrorResponse)}
            for status, words in (
                ("400", "The request cannot be read."),
                ("401", "The proof is none."),
                ("403", "The token is none."),
                ("404", "There is no such thing."),
                ("408", "The request came too slowly."),
                ("409", "It was sent before, or is no longer wanted."),
                ("411", "The request does not tell its length."),
                ("413", "The request is too large."),
                ("415", "Compressed requests are not read."),
                ("429", "Too many requests."),
                ("503", "The database or the store does not answer."),
            )
        }
        return {
            "operationId": name,
            "summary": summary,
            "tags": ["devices"],
            "responses": refused | answers,
            **more,
        }

    proof: dict[str, Any] = {"security": [{"proof": []}]}
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    job = {"name": "job", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"}}
    verdict = {
        "name": "verdict",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": ["done", "failed"]},
    }
    sum_name = {
        "name": "sum",
        "in": "path",
        "required": True,
        "description": "Digest of the sum's terms, hexadecimal.",
        "schema": {"type": "string"},
    }
    sum_act = {
        "name": "act",
        "in": "path",
        "required": True,
        "schema": {
            "type": "string",
            "enum": ["submit", "advertise", "share", "mask", "reveal", "participants", "survivors"],
        },
    }
    kept: dict[str, Any] = {
        status: {"description": words, "content": octets}
        for status, words in (
            ("200", "Kept, or what was asked for."),
            ("403", "Refused for good."),
            ("409", "Refused for now."),
        )
    }
    return {
        "/sums/{sum}/{act}": {
            "post": operation(
                "send_letter",
                "Send a letter for a private sum, or ask how it stands",
                kept,
                parameters=[sum_name, sum_act],
                requestBody={"required": True, "content": octets},
            )
        },
        "/device/enrol": {
            "post": operation(
                "enrol_device",
                "Enrol",
                {"200": {"description": "Enrolled.", **said(EnrolResponse)}},
                requestBody={"required": True, **said(EnrolRequest)},
            )
        },
        "/device/check-in": {
            "post": operation(
                "check_in",
                "Say how a device is",
                {"200": {"description": "Kept.", **said(CheckInResponse)}},
                requestBody={"required": True, **said(CheckInRequest)},
                **proof,
            )
        },
        "/device/job": {
            "post": operation(
                "take_job",
                "Take a profiling job",
                {"200": {"description": "A job.", "content": octets}, "204": {"description": "There is none."}},
                **proof,
            )
        },
        "/device/job/{job}/{verdict}": {
            "post": operation(
                "end_job",
                "Say what came of a profiling job",
                {"204": {"description": "Kept."}},
                parameters=[job, verdict],
                requestBody={"required": True, "content": octets},
                **proof,
            )
        },
    }
