"""The local server: unmodified clients of the Open Inference Protocol, and doors that stay shut."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.device.conftest import World

from edgewright.contract.errors import InputError
from edgewright.device.serving.http_server import InferenceServer, create_tcp_server, create_unix_server

VALUES = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


def run(server: InferenceServer) -> Iterator[InferenceServer]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running: World) -> Iterator[InferenceServer]:
    yield from run(create_tcp_server(running.agent(), 0))


def ask(
    server: InferenceServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def inference(**more: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": VALUES.reshape(-1).tolist()} | more
    return json.dumps({"id": "7", "inputs": [tensor]}).encode()


def test_tritons_client_works_unmodified(server: InferenceServer) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed: make setup")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.server_address[1]}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    metadata = client.get_model_metadata("m")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    for binary in (False, True):
        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(VALUES, binary_data=binary)
        wanted = triton.InferRequestedOutput("y", binary_data=binary)
        answer = client.infer("m", [given], outputs=[wanted], request_id="42")
        assert (answer.as_numpy("y") == VALUES).all()
        assert answer.get_response()["model_version"] == "1.0.0"
        assert answer.get_response()["id"] == "42"
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.full((1, 4), np.nan, np.float32))
    with pytest.raises(triton.InferenceServerException, match="NaN"):
        client.infer("m", [given])
    client.close()


def test_plain_json_works(server: InferenceServer) -> None:
    status, content, _ = ask(server, "POST", "/v2/models/m/infer", inference())
    assert status == 200
    answer = json.loads(content)
    assert (answer["id"], answer["outputs"][0]["data"]) == ("7", [1.0, 2.0, 3.0, 4.0])
    assert ask(server, "POST", "/v2/models/m/versions/1.0.0/infer", inference())[0] == 200


REFUSED: dict[str, tuple[str, str, bytes | None, dict[str, str], int]] = {
    "another host's name": ("GET", "/v2", None, {"Host": "attacker.example"}, 403),
    "a web page": ("POST", "/v2/models/m/infer", inference(), {"Origin": "https://attacker.example"}, 403),
    "loading a model": ("POST", "/v2/repository/models/m/load", b"{}", {}, 404),
    "shared memory": ("POST", "/v2/systemsharedmemory/region/x/register", b"{}", {}, 404),
    "another model": ("POST", "/v2/models/other/infer", inference(), {}, 404),
    "another version": ("POST", "/v2/models/m/versions/9/infer", inference(), {}, 404),
    "a path": ("GET", "/v2/models/../../etc/passwd", None, {}, 404),
    "no JSON": ("POST", "/v2/models/m/infer", b"{", {}, 400),
    "too few values": ("POST", "/v2/models/m/infer", inference(data=[1.0]), {}, 400),
    "a shape that is none": ("POST", "/v2/models/m/infer", inference(shape=[-1, 4]), {}, 400),
    "a type that is none": ("POST", "/v2/models/m/infer", inference(datatype="FP9"), {}, 400),
    "words": ("POST", "/v2/models/m/infer", inference(data=["a"] * 4), {}, 400),
    "bytes that are not there": (
        "POST",
        "/v2/models/m/infer",
        inference(data=None, parameters={"binary_data_size": 1 << 40}),
        {},
        400,
    ),
    "a header's length that is a lie": (
        "POST",
        "/v2/models/m/infer",
        inference(),
        {"Inference-Header-Content-Length": "99999"},
        400,
    ),
    "a compressed bomb": ("POST", "/v2/models/m/infer", inference(), {"Content-Encoding": "gzip"}, 400),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_not_offered_is_refused_and_the_server_goes_on(server: InferenceServer, attack: str) -> None:
    method, path, body, headers, status = REFUSED[attack]
    found, content, _ = ask(server, method, path, body, **headers)
    assert (found, "error" in json.loads(content)) == (status, True)
    assert ask(server, "POST", "/v2/models/m/infer", inference())[0] == 200


def test_a_body_that_is_too_large_is_not_read(server: InferenceServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=5) as connection:
        connection.sendall(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in connection.recv(4096)


def test_no_page_may_read_an_answer(server: InferenceServer) -> None:
    _, _, headers = ask(server, "GET", "/v2")
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_a_token_is_asked_for(running: World) -> None:
    for server in run(create_tcp_server(running.agent(), 0, token="secret")):  # noqa: S106 - of a test
        assert ask(server, "GET", "/v2")[0] == 401
        assert ask(server, "GET", "/v2", Authorization="Bearer wrong")[0] == 401
        assert ask(server, "GET", "/v2", Authorization="Bearer secret")[0] == 200


def test_outside_of_the_device_nobody_is_answered_without_a_token(running: World) -> None:
    with pytest.raises(InputError, match="no token"):
        create_tcp_server(running.agent(), 0, host="0.0.0.0")  # noqa: S104 - that is what is refused


def test_a_unix_socket_is_for_owner_and_group(running: World, tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    for _ in range(2):  # one that is left over is replaced
        for _server in run(create_unix_server(running.agent(), path)):
            assert path.stat().st_mode & 0o777 == 0o660
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                body = inference()
                head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                assert b" 200 " in connection.recv(4096)


def test_metrics_and_health_are_told(server: InferenceServer) -> None:
    ask(server, "POST", "/v2/models/m/infer", inference())
    status, content, headers = ask(server, "GET", "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4")
    text = content.decode()
    assert "edgewright_inferences_total 1" in text
    assert 'edgewright_release{model="m",version="1.0.0"} 1' in text
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_without_a_model_the_server_says_so(world: World) -> None:
    for server in run(create_tcp_server(world.agent(), 0)):
        assert ask(server, "GET", "/v2/health/live")[0] == 200
        assert ask(server, "GET", "/v2/health/ready")[0] == 503
        assert ask(server, "POST", "/v2/models/m/infer", inference())[0] == 404
