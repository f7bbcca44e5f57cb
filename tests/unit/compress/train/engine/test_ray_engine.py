"""What goes wrong before there is a cluster is said at once."""

import sys
import time

import pytest

from edgewright.compress.train.engine import ray_engine
from edgewright.compress.train.engine.ray_engine import RayEngine
from edgewright.contract.errors import InputError, TargetError


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="not installed") as caught:
        RayEngine(1)
    assert "edgewright[cluster]" in caught.value.remedy


def test_without_rays_client_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="client is not installed") as caught:
        RayEngine(1, "ray://127.0.0.1:10001")
    assert "edgewright[cluster]" in caught.value.remedy


def test_a_cluster_that_does_not_listen_is_a_matter_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: True)
    pytest.importorskip("ray", reason="Ray is not installed")
    began = time.monotonic()
    with pytest.raises(TargetError, match="cannot be reached"):
        RayEngine(1, "ray://127.0.0.1:9")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("address", ["ray://", "ray://host", "ray://host:port", "ray://:10001"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: True)
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(InputError, match="no address"):
        RayEngine(1, address)


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="0 workers"):
        RayEngine(0)
