"""Becoming a device of a fleet, with a control plane and without one: whole or not at all, and by the same key."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.device.conftest import World, answer
from tests.unit.device.control_plane_double import Plane, Reply, held, joined, planes, reply, root_of

from edgewright.cli.main import main
from edgewright.contract.api.device_api import EnrolResponse
from edgewright.contract.errors import EdgewrightError, InputError, OutputError, WorkError
from edgewright.device import control_plane_client, enrolment
from edgewright.device.encryption_keys import IDENTITY_KEY_FILE
from edgewright.device.enrolment import enrol_at_server, read_settings
from edgewright.device.filesystem import FileSystem
from edgewright.trust.keys.device_identity import device_id_of, load_or_create_device_key


@pytest.fixture
def plane(world: World) -> Iterator[Plane]:
    with planes(world.clock) as made:
        yield made


def own_id(state: Path) -> str:
    return device_id_of(load_or_create_device_key(state / IDENTITY_KEY_FILE).public)


def test_a_control_plane_says_what_a_device_is(world: World, plane: Plane) -> None:
    told = joined(world, plane, device_class="camera", labels={"site": "berlin"}, channel="beta", profiling=True)
    settings, anchor = read_settings(world.path / "device")
    assert settings == told
    assert (settings.device_class, settings.labels, settings.channel) == ("camera", {"site": "berlin"}, "beta")
    assert (settings.server_url, settings.audience, settings.profiling) == (plane.url, "fleet-1", True)
    assert (settings.repository_url, anchor) == (world.url, root_of(world))
    assert list(plane.known) == [settings.device_id]


@pytest.mark.parametrize(
    ("repository", "url"),
    [
        ("repo/", "{}repo/"),
        ("/repo", "{}repo/"),
        ("https://cdn.example/f1", "https://cdn.example/f1/"),
    ],
)
def test_the_repository_is_found_from_the_servers_address(
    world: World, plane: Plane, repository: str, url: str
) -> None:
    assert joined(world, plane, repository=repository).repository_url == url.format(plane.url)


def test_a_device_that_was_enrolled_so_gets_its_model(world: World, plane: Plane) -> None:
    world.publish("1.0.0", 3.0)
    world.start("1.0.0")
    joined(world, plane)
    agent = world.agent()
    agent.check_for_update()
    assert answer(agent) == 3.0


def test_a_device_is_named_by_its_key_with_a_control_plane_and_without(world: World, plane: Plane) -> None:
    joined(world, plane, "with")
    world.enrol("without")
    for name in ("with", "without"):
        settings, _ = read_settings(world.path / name)
        assert settings.device_id == own_id(world.path / name)
    assert read_settings(world.path / "without")[0].server_url == ""


def test_an_enrolment_whose_answer_was_lost_is_done_again_with_the_same_token(world: World, plane: Plane) -> None:
    def lost(handler: Any) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    plane.offers["t"] = {"device_class": "default", "repository": "repo/"}
    given: dict[str, Any] = {"server_url": plane.url, "token": "t", "root": root_of(world)}
    state = world.path / "device"
    enrols, plane.enrol = plane.enrol, lambda body: (500, enrols(body)[1])  # type: ignore[method-assign]
    with pytest.raises(control_plane_client.ServerUnavailableError, match="answered 500"):
        enrol_at_server(state, **given)
    assert held(state) == {IDENTITY_KEY_FILE}
    with pytest.raises(InputError, match="no enrolled device"):
        read_settings(state)
    plane.enrol = enrols  # type: ignore[method-assign]
    plane.replies["/device/enrol"] = lost
    with pytest.raises(control_plane_client.ServerUnavailableError, match="cannot be reached"):
        enrol_at_server(state, **given)
    plane.replies.clear()
    first = own_id(state)
    assert enrol_at_server(state, **given).device_id == first
    assert list(plane.known) == [first]


class Cut(Exception):  # noqa: N818 - not an error but a power cut
    pass


class FailingFiles(FileSystem):
    """A disk whose power is cut at one of its operations, or that is full from then on."""

    left = 0
    full = False

    def _count(self) -> None:
        type(self).left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device") if self.full else Cut

    def write_in_place(self, path: Path, content: bytes) -> None:
        if self.left == 0 and not self.full:
            path.write_bytes(content[: len(content) // 2])
        self._count()
        super().write_in_place(path, content)

    def rename(self, path: Path, to: Path) -> None:
        self._count()
        super().rename(path, to)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("after", range(5))
def test_an_enrolment_that_broke_off_anywhere_is_done_again(
    world: World, plane: Plane, monkeypatch: pytest.MonkeyPatch, after: int, full: bool
) -> None:
    state = world.path / "device"
    monkeypatch.setattr(enrolment, "FileSystem", FailingFiles)
    monkeypatch.setattr(FailingFiles, "left", after)
    monkeypatch.setattr(FailingFiles, "full", full)
    if after == 4:  # all of it went well
        joined(world, plane)
        with pytest.raises(InputError, match="is not empty"):
            joined(world, plane)
        return
    with pytest.raises(OutputError if full else Cut):
        joined(world, plane)
    with pytest.raises(InputError, match="no enrolled device"):
        read_settings(state)
    FailingFiles.left = 99
    key = (state / IDENTITY_KEY_FILE).read_bytes()
    settings = joined(world, plane)
    assert read_settings(state)[0] == settings
    assert (state / IDENTITY_KEY_FILE).read_bytes() == key
    assert not [name for name in held(state) if name.endswith(".new")]


def test_what_else_lies_in_a_folder_is_nobodys_to_remove(world: World, plane: Plane) -> None:
    state = world.path / "device"
    state.mkdir()
    (state / "device.key").write_bytes(b"half")
    (state / "journal.0").write_bytes(b"of another device")
    with pytest.raises(InputError, match="is not empty"):
        joined(world, plane)
    assert held(state) == {"device.key", "journal.0"}
    assert plane.requests == 0


ENROLLED = EnrolResponse("0" * 32, "default", "fleet-1", "repo/")


def said(**changes: Any) -> Reply:
    """Return an answer that would do for whoever has the right key, changed; the name is put right if not given."""

    def answers(handler: Any) -> None:
        content = msgspec.to_builtins(ENROLLED) | {"device_id": said.__dict__["name"]} | changes
        reply(200, msgspec.json.encode(content))(handler)

    return answers


ATTACKS: dict[str, tuple[Reply, str]] = {
    "no token of this fleet": (
        reply(403, b'{"code":"E","message":"none\\u001b[2J","remedy":""}'),
        r"\(403\): none\[2J",
    ),
    "a page": (reply(200, b"<html>log in here</html>"), "none of its answers"),
    "nothing": (reply(200, b""), "none of its answers"),
    "deep": (reply(500, b'{"more":' + b"[" * 30_000), "answered 500"),
    "oversized": (reply(200, b" " * 100_000), "more than 65536 bytes"),
    "elsewhere": (reply(307, b"", Location="http://127.0.0.1:1/device/enrol"), "answered 307"),
    "another device": (said(device_id="f" * 32), "calls this device"),
    "a class that is a path": (said(device_class="../other"), "no name"),
    "a label that is none": (said(labels={"a b": "c"}), "no name"),
    "no audience": (said(audience=""), "whom requests are for"),
    "an audience that is too long": (said(audience="a" * 1000), "whom requests are for"),
    "a repository on the disk": (said(repository="file:///etc/"), "names the repository"),
    "a repository that is no URL": (said(repository="http://[x/"), "names the repository"),
}


def test_a_root_that_a_server_sends_along_is_not_believed(world: World, plane: Plane) -> None:
    state = world.path / "device"
    state.mkdir()
    said.__dict__["name"] = own_id(state)
    plane.replies["/device/enrol"] = said(root="{}")
    joined(world, plane)
    assert (state / "root.json").read_bytes() == (world.repo / "metadata/1.root.json").read_bytes()


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_server_answers_no_device_is_half_enrolled(world: World, plane: Plane, attack: str) -> None:
    state = world.path / "device"
    state.mkdir()
    said.__dict__["name"] = own_id(state)
    plane.replies["/device/enrol"], why = ATTACKS[attack]
    with pytest.raises(WorkError, match=why):
        joined(world, plane)
    assert held(state) == {IDENTITY_KEY_FILE}
    plane.replies.clear()
    joined(world, plane)


def test_the_answer_that_the_attacks_change_is_a_good_one(world: World, plane: Plane) -> None:
    (world.path / "device").mkdir()
    said.__dict__["name"] = own_id(world.path / "device")
    plane.replies["/device/enrol"] = said()
    assert joined(world, plane).repository_url == f"{plane.url}repo/"


def test_a_server_that_never_ends_is_not_waited_for(
    world: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            ended.wait(0.05)

    import threading

    ended = threading.Event()
    monkeypatch.setattr(
        control_plane_client.send_http,
        "__kwdefaults__",
        {**(control_plane_client.send_http.__kwdefaults__ or {}), "timeout_seconds": 0.3},
    )
    plane.replies["/device/enrol"] = drip
    with pytest.raises(control_plane_client.ServerUnavailableError, match="too slow"):
        joined(world, plane)
    ended.set()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"server_url": "ftp://fleet.example"}, "no URL of a control plane"),
        ({"server_url": "https://fleet.example/?a=b"}, "no URL of a control plane"),
        ({"token": "t" * 201}, "a token of 201 letters"),
        ({"model": "../m"}, "no name"),
        ({"root": b"{}"}, "root"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(
    world: World, plane: Plane, given: dict[str, Any], why: str
) -> None:
    right = {"server_url": plane.url, "token": "t", "root": root_of(world)}
    with pytest.raises(EdgewrightError, match=why):
        enrol_at_server(world.path / "device", **(right | given))
    assert plane.requests == 0


def test_a_fleet_that_is_not_the_roots_installs_nothing(world: World, plane: Plane, tmp_path: Path) -> None:
    """A server may name any repository; what is not signed by the root that the device has is not believed."""
    from edgewright.trust.keys.signing_keys import KeyFolder
    from edgewright.trust.repository.bootstrap import create_repository
    from edgewright.trust.storage.storage import LocalStorage

    world.publish("1.0.0", 1.0)
    world.start("1.0.0")
    other = tmp_path / "other"
    keys = KeyFolder(other / "keys", world.keys.ask_passphrase)
    (other / "repo").mkdir(parents=True)
    create_repository(
        LocalStorage(other / "repo"), keys, passphrase=keys.ask_passphrase(""), bits=2, now=world.clock
    )
    plane.offers["t"] = {"device_class": "default", "repository": world.url}
    given: dict[str, Any] = {
        "server_url": plane.url,
        "token": "t",
        "root": (other / "repo/metadata/1.root.json").read_bytes(),
    }
    enrol_at_server(world.path / "device", **given)
    agent = world.agent()
    record = agent.check_for_update()
    assert record.last_refusal is not None
    assert record.last_refusal.code in ("tampered", "unsigned")
    assert (agent.status()["version"], answer(agent)) == (None, None)


def enrolled(world: World, *given: str) -> int:
    root = str(world.repo / "metadata/1.root.json")
    return main(["device", "enrol", "--root", root, "--state", str(world.path / "device"), *given])


def test_the_command_enrols_with_a_control_plane(
    world: World, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.offers["t"] = {"device_class": "camera", "repository": world.url}
    assert enrolled(world, "--server", plane.url, "--token", "t", "--json") == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert shown["device"]["device_class"] == "camera"
    assert list(plane.known) == [shown["device"]["device_id"]]
    assert shown["public_key"] == plane.known[shown["device"]["device_id"]].hex()
    assert main(["device", "status", "--state", str(world.path / "device")]) == 0
    assert f"{plane.url} was reached never" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--server", "http://127.0.0.1:1/"],
        ["--token", "t"],
        ["--repo", "http://127.0.0.1:1/", "--token", "t"],
        ["--repo", "http://127.0.0.1:1/", "--server", "http://127.0.0.1:1/", "--token", "t"],
        ["--server", "http://127.0.0.1:1/", "--token", "t", "--device-class", "camera"],
        ["--server", "http://127.0.0.1:1/", "--token", "t", "--label", "a=b"],
        ["--server", "http://127.0.0.1:1/", "--token", "t", "--channel", "beta"],
        ["--device-class", "camera"],
    ],
)
def test_both_ways_at_once_or_neither_is_refused(
    world: World, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrolled(world, *given) == 2
    assert "Give --server and --token, or --repo" in capsys.readouterr().err
    assert not (world.path / "device").exists()


def test_the_command_says_what_a_server_refuses(
    world: World, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrolled(world, "--server", plane.url, "--token", "none") == 1
    shown = capsys.readouterr().err
    assert "the token is none of this fleet" in shown
    assert "Ask for a new one." in shown
