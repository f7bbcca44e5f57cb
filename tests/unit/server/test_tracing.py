"""Requests become spans by route, and nobody learns from them whose requests they were."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import urllib3

pytest.importorskip("opentelemetry.sdk", reason="it comes with the extra 'telemetry'")
pytest.importorskip("opentelemetry.instrumentation.asgi", reason="it comes with the extra 'telemetry'")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.unit.server.live_server import Plant

from edgewright.contract.errors import InputError
from edgewright.server.process import free_port, run_server
from edgewright.server.tracing import trace_requests, tracing_from_environment


class Traced:
    """A control plane whose spans are kept."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        plant.app = trace_requests(plant.app, provider)

    def spans(self) -> tuple[ReadableSpan, ...]:
        found = self._kept.get_finished_spans()
        self._kept.clear()
        return found


@pytest.fixture
def kept(plant: Plant) -> Traced:
    return Traced(plant)


def test_a_request_is_a_span_named_by_its_route(kept: Traced) -> None:
    plant = kept.plant
    machine = plant.machine()
    plant.token("viewer")
    assert plant.operate("GET", f"/api/devices/{machine.id}", role="viewer").status == 200
    assert machine.check_in().status == 200
    assert plant.get("/repo/metadata/1.root.json").status == 200
    assert plant.get(f"/elsewhere/{machine.id}").status == 404
    assert plant.ask("\u00e4rgern", "/healthz").status in (400, 405)
    spans = kept.spans()
    assert [span.name for span in spans] == [
        "GET /api/devices/{device_id}",
        "POST /device/check-in",
        "GET /repo",
        "GET other",
        "_OTHER /healthz",
    ]
    statuses = [(span.attributes or {}).get("http.status_code") for span in spans]
    assert statuses[:4] == [200, 200, 200, 404]
    assert all((span.attributes or {})["http.route"] == span.name.partition(" ")[2] for span in spans)


def test_no_span_tells_of_a_device_a_query_a_token_or_an_address(kept: Traced) -> None:
    plant = kept.plant
    machine = plant.machine()
    secret = plant.token("operator")
    headers = {"Authorization": f"Bearer {secret}", "Cookie": "edgewright_session=hidden", "User-Agent": "hidden"}
    plant.get(f"/api/devices/{machine.id}?version=hidden", headers | {"Host": "hidden"}, client="192.0.2.77")
    plant.post(f"/api/devices/{machine.id}/retire", b'{"reason":"hidden"}', headers)
    plant.get("/device/hidden", headers)
    machine.check_in()
    said = "".join(f"{span.to_json()}{span.events}{span.resource.to_json()}" for span in kept.spans())
    assert "/api/devices/{device_id}/retire" in said
    for hidden in (machine.id, secret, "hidden", "192.0.2.77", "Bearer"):
        assert hidden not in said


def test_a_span_belongs_to_the_trace_that_the_request_came_with(kept: Traced) -> None:
    kept.plant.get("/healthz", {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    (span,) = kept.spans()
    context = span.get_span_context()
    assert context is not None
    assert f"{context.trace_id:032x}" == "ab" * 16


def test_nothing_is_traced_unless_it_is_asked_for(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    with tracing_from_environment(plant.app) as app:
        assert app is plant.app


def test_whoever_asks_for_traces_without_the_libraries_is_told_how_to_get_them(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"not installed.*telemetry"), tracing_from_environment(plant.app):
        pass


def test_what_a_served_control_plane_did_arrives_where_the_environment_says(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    collecting = threading.Thread(target=collector.serve_forever)
    collecting.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    port = free_port("127.0.0.1", 0)
    ended, ready = threading.Event(), threading.Event()
    serving = threading.Thread(
        target=run_server, args=(plant.app, "127.0.0.1", port), kwargs={"ended": ended, "ready": ready.set}
    )
    serving.start()
    try:
        assert ready.wait(20)
        assert urllib3.request("GET", f"http://127.0.0.1:{port}/healthz", retries=False).status == 200
    finally:
        ended.set()
        serving.join(30)
        collector.shutdown()
        collecting.join(10)
        collector.server_close()
    assert b"GET /healthz" in b"".join(got)
    assert b"edgewright" in b"".join(got)
