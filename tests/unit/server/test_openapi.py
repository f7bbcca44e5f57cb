"""The document tells the truth: it is one, it is whole, and what is made of it never breaks the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from litestar.routes import HTTPRoute
from tests.unit.server.live_server import Answer, Machine, Plant, unquoted, work

from edgewright.contract.api import device_api, operator_api
from edgewright.contract.api.device_api import PROOF

PATHS = {
    "/api/alerts": "get",
    "/api/alerts/changes": "get",
    "/api/alerts/silence": "post",
    "/api/approvals": "get",
    "/api/approvals/{item}/{verdict}": "post",
    "/api/audit": "get",
    "/api/cohorts/{model}/{device_class}": "get",
    "/api/decisions": "get",
    "/api/decisions/{model}/{device_class}/{rollout_name}/{number}": "get",
    "/api/devices": "get",
    "/api/devices/{device_id}": "get",
    "/api/devices/{device_id}/profiling": "post",
    "/api/devices/{device_id}/retire": "post",
    "/api/fleet": "get",
    "/api/invitations": "get post",
    "/api/jobs": "get post",
    "/api/jobs/{job_id}": "delete get",
    "/api/jobs/{job_id}/result": "get",
    "/api/policies/{model}/{device_class}": "get",
    "/api/queries": "get",
    "/api/queries/{model}/{device_class}": "post",
    "/api/queries/{query_id}": "delete get",
    "/api/releases": "get",
    "/api/releases/{model}/{version}": "get",
    "/api/rollouts": "get post",
    "/api/rollouts/{model}/{device_class}": "get",
    "/api/rollouts/{model}/{device_class}/abort": "post",
    "/api/rollouts/{model}/{device_class}/advance": "post",
    "/api/rollouts/{model}/{device_class}/pause": "post",
    "/api/rollouts/{model}/{device_class}/resume": "post",
    "/api/tokens": "get post",
    "/api/tokens/{name}": "delete",
    "/api/users": "get post",
    "/api/users/{name}": "delete",
    "/device/check-in": "post",
    "/device/enrol": "post",
    "/device/job": "post",
    "/device/job/{job}/{verdict}": "post",
    "/healthz": "get",
    "/sums/{sum}/{act}": "post",
}
# Records of answers alone; whoever reads them leaves out what it does not know.
ANSWERS = {"CheckInResponse", "CreatedResource", "CreatedSecrets", "EnrolResponse", "ErrorResponse"}


@pytest.fixture(scope="module")
def document(standing: Plant) -> dict[str, Any]:
    answer = standing.get("/openapi.json")
    assert (answer.status, answer.header("content-type")) == (200, "application/json"), "it needs no token"
    found: dict[str, Any] = answer.said
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            yield path, verb, operation


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="it is a development dependency")
    assert document["openapi"].startswith("3.1")
    validator.validate(document)


def test_its_paths_are_these(document: dict[str, Any]) -> None:
    assert {path: " ".join(sorted(item)) for path, item in document["paths"].items()} == PATHS


def test_each_route_that_is_served_is_in_it(standing: Plant, document: dict[str, Any]) -> None:
    for route in standing.app.pages.routes:
        if isinstance(route, HTTPRoute) and route.path not in ("/openapi.json", "/metrics"):
            verbs = {str(method).lower() for method in route.route_handler_map} - {"options"}
            assert verbs == set(document["paths"][route.path_format]), route.path_format


def test_each_operation_has_a_name_of_its_own_and_a_summary(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for path, verb, operation in operations(document):
        assert len(operation["summary"].split()) >= 1, (path, verb)
        assert not operation["summary"].endswith("."), (path, verb)


def test_what_needs_a_token_or_a_proof_says_so(document: dict[str, Any]) -> None:
    for path, verb, operation in operations(document):
        wanted: list[dict[str, list[str]]] | None = None
        if path.startswith("/api/"):
            wanted = [{"token": []}]
        elif path.startswith("/device/") and path != "/device/enrol":
            wanted = [{"proof": []}]
        assert operation.get("security") == wanted, (path, verb)


def referred(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for value in schema.values():
            yield from referred(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from referred(value)


def test_no_record_that_is_taken_takes_fields_that_it_does_not_know(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    taken = {name for _, _, operation in operations(document) for name in referred(operation.get("requestBody"))}
    waiting = set(taken)
    while waiting:
        more = set(referred(schemas[waiting.pop()])) - taken
        taken |= more
        waiting |= more
    assert {"CheckInRequest", "StartRollout", "DeviceStatus", "HealthRule", "CreateUser"} <= taken
    for name in taken:
        if schemas[name]["type"] == "object":
            assert schemas[name]["additionalProperties"] is False, name


def test_every_record_of_the_contract_is_described(document: dict[str, Any]) -> None:
    for module in (device_api, operator_api):
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                schema = document["components"]["schemas"][name]
                assert schema["title"] == name
                assert schema["description"]
                assert kind.__struct_config__.forbid_unknown_fields or name in ANSWERS


def test_every_refusal_is_a_problem(document: dict[str, Any]) -> None:
    for path, verb, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and not (path.startswith("/sums/") and status in ("403", "409")):
                content = answer["content"]["application/json"]["schema"]
                assert content == {"$ref": "#/components/schemas/ErrorResponse"}, (path, verb, status)


def asked(plant: Plant, machine: Machine, prepared: Any) -> Answer:
    """Send a request as a release manager, or as a device that signs it."""
    body = prepared.body or b""
    body = body.encode() if isinstance(body, str) else body
    skipped = ("content-length", "accept-encoding", "connection", "transfer-encoding")
    headers = {name: value for name, value in prepared.headers.items() if name.lower() not in skipped}
    if prepared.path_url.startswith("/api/"):
        headers["Authorization"] = f"Bearer {plant.token('release manager')}"
    elif prepared.path_url.startswith("/device/"):
        path = unquoted(prepared.path_url.partition("?")[0])
        headers[PROOF] = machine.proof(path, body, method=prepared.method)
    raw = [(name.lower().encode(), value.encode("utf-8", "replace")) for name, value in headers.items()]
    return plant.ask(prepared.method, prepared.path_url, body, raw=raw)


def test_nothing_that_can_be_made_of_the_document_breaks_the_server(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="it is a development dependency")
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        schemathesis.checks.not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        negative_data_rejection,
    ]
    monkeypatch.setattr(plant.app.intake._often, "burst", 1e9)
    monkeypatch.setattr(plant.app.intake._often, "per_s", 1e9)
    machine = plant.machine(profiling=True)
    plant.machine(device_class="camera", labels={"site": "b"})
    machine.check_in()
    plant.acting.create_job("user:ann", machine.id, work(tmp_path))
    document = plant.get("/openapi.json").said
    for _, _, operation in operations(document):  # who may do what is tested by the routes
        operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(document)
    seen: dict[str, set[int]] = {}

    def attempt(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
        prepared = requests.Request(
            **{name: value for name, value in sent.items() if name in requests.Request().__dict__}
        ).prepare()
        answer = asked(plant, machine, prepared)
        seen.setdefault(case.operation.label, set()).add(answer.status)
        headers: dict[str, list[str]] = {}
        for name, value in answer.headers:
            headers.setdefault(name, []).append(value)
        response = schemathesis.Response(
            answer.status, headers, answer.content, request=prepared, elapsed=0.01, verify=False
        )
        case.validate_response(response, checks=checks)

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                run = given(case=strategy)(attempt)
                quiet = settings(
                    max_examples=5,
                    derandomize=True,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                quiet(run)()
            except Unsatisfiable:  # nothing about it can be wrong
                assert mode is schemathesis.GenerationMode.NEGATIVE, operation.label
    assert len(seen) == sum(len(verbs.split()) for verbs in PATHS.values())
    reached = {label for label, statuses in seen.items() if statuses & {200, 201, 204, 404, 409}}
    assert len(reached) > 30, "most were reached with something that could be read"
