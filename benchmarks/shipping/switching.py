"""Asking a device's model over HTTP all the time while it switches from one release to another and back."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.shipping.world import INPUTS, NAME, World

from edgewright.device.agent import Agent
from edgewright.device.serving.http_server import create_tcp_server
from edgewright.device.update.self_test import Probation

__all__ = ["Switching", "ask_while_switching"]


@dataclass(slots=True)
class Switching:
    """What became of requests.

    Attributes:
        requests: That were sent.
        lost: That got no answer.
        wrong: Whose answer is not that of the version that it names.
        switches: Meanwhile.
        before_ms: Latency of requests while nothing was updated.
        during_ms: Latency of requests while an update was fetched, tested or switched to.
    """

    requests: int = 0
    lost: int = 0
    wrong: int = 0
    switches: int = 0
    before_ms: list[float] = field(default_factory=list)
    during_ms: list[float] = field(default_factory=list)

    def p99_ratio(self) -> float:
        """Return p99 during updates over p99 before."""
        return float(np.percentile(self.during_ms, 99) / np.percentile(self.before_ms, 99))


def ask_while_switching(
    world: World,
    state: Path,
    versions: dict[str, float],
    count: int,
    *,
    clients: int = 2,
    rest_seconds: float = 0.2,
) -> Switching:
    """Send so many requests while the device goes back and forth between two releases.

    Args:
        world: Its repository has these releases.
        state: Of a device with a proven release.
        versions: What each version's model multiplies by; two.
        count: Of requests.
        clients: That ask at the same time.
        rest_seconds: Between two updates.
    """
    agent = Agent(state, probation=Probation(min_inferences=20))
    server = create_tcp_server(agent, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found, busy, lock = Switching(), threading.Event(), threading.Lock()
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, INPUTS], "datatype": "FP32", "data": [1.0] * INPUTS}]}
    ).encode()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        while True:
            with lock:
                if found.requests >= count:
                    return
                found.requests += 1
            was_busy = busy.is_set()
            began = time.perf_counter()
            try:
                connection.request("POST", f"/v2/models/{NAME}/infer", body)
                reply = connection.getresponse()
                answer = json.loads(reply.read())
                right = reply.status == 200 and versions[answer["model_version"]] == answer["outputs"][0]["data"][0]
            except (OSError, http.client.HTTPException, KeyError, ValueError):
                with lock:
                    found.lost += 1
                connection.close()
                continue
            elapsed = 1e3 * (time.perf_counter() - began)
            with lock:
                found.wrong += not right
                (found.during_ms if was_busy or busy.is_set() else found.before_ms).append(elapsed)

    askers = [threading.Thread(target=ask) for _ in range(clients)]
    for asker in askers:
        asker.start()
    names = list(versions)
    target = 1
    while any(asker.is_alive() for asker in askers):
        time.sleep(rest_seconds)
        world.roll_out(names[target])
        busy.set()
        agent.check_for_update()
        busy.clear()
        found.switches += 1
        while agent.journal_record.slots.trial is not None and any(asker.is_alive() for asker in askers):
            agent.settle_probation()
            time.sleep(0.02)
        target = 1 - target
    server.shutdown()
    server.server_close()
    agent.close()
    return found
