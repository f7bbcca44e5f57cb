"""Stores: a folder and a bucket keep the same laws."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.trust.conftest import PASSPHRASE, Place

from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository_check import check_repository
from edgewright.trust.storage.open_storage import open_repository_storage
from edgewright.trust.storage.storage import AlreadyExistsError, LocalStorage, Storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an S3-compatible server, which runs in this process and answers over a real socket."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: make setup")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    given = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="models")
    yield url
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_repository_storage(str(tmp_path / "repo"))
    request.getfixturevalue("bucket")
    return open_repository_storage(f"s3://models/{tmp_path.name}")


def test_what_was_put_is_there(store: Storage) -> None:
    assert store.read("a/b") is None
    assert store.size("a/b") is None
    store.create("a/b", b"one")
    store.replace("a/c", b"three")
    assert (store.read("a/b"), store.size("a/c"), store.names("a")) == (b"one", 5, ["a/b", "a/c"])
    store.replace("a/b", b"two")
    store.delete("a/c")
    store.delete("a/c")
    assert (store.read("a/b"), store.names("a"), store.names("none")) == (b"two", ["a/b"], [])


def test_what_is_there_is_not_created_again(store: Storage) -> None:
    store.create("name", b"one")
    with pytest.raises(AlreadyExistsError):
        store.create("name", b"two")
    assert store.read("name") == b"one"


def test_of_many_who_create_the_same_one_succeeds(store: Storage) -> None:
    done: list[int] = []

    def create(number: int) -> None:
        try:
            store.create("lock", str(number).encode())
            done.append(number)
        except AlreadyExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1
    assert store.read("lock") == str(done[0]).encode()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a\0b"])
def test_a_name_that_leads_out_is_refused(store: Storage, name: str) -> None:
    for act in (store.read, store.size, store.delete, store.names):
        with pytest.raises(InputError, match="leads out"):
            act(name)
    for put in (store.create, store.replace):
        with pytest.raises(InputError, match="leads out"):
            put(name, b"")


def test_a_link_in_a_folder_leads_nowhere(tmp_path: Path) -> None:
    """Somebody who can write to the folder links to a file outside of it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "link").symlink_to(secret)
    (repo / "folder").symlink_to(tmp_path)
    store = LocalStorage(repo)
    for name in ("link", "folder/secret"):
        with pytest.raises(WorkError, match="is a link"):
            store.read(name)
        with pytest.raises(WorkError, match="is a link"):
            store.replace(name, b"other")
    assert secret.read_bytes() == b"secret"


def test_a_repository_lives_in_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    place = Place(tmp_path)
    place.store = open_repository_storage(f"s3://models/{tmp_path.name}")  # type: ignore[assignment]
    keys = KeyFolder(tmp_path / "keys", lambda _: PASSPHRASE)
    create_repository(place.store, keys, passphrase=PASSPHRASE, bits=1, now=place.now)
    assert place.publish("1.0.0", b"model").published
    repository = Repository(place.store, read_trusted_root(tmp_path / "keys"), place.now)
    check = check_repository(repository)
    assert (check.faults, check.releases, check.files) == ([], 1, 1)
    again = place.publish("1.1.0", b"model")
    assert again.uploaded_bytes == 0  # the bytes are there


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(InputError, match="no store that can be written"):
        open_repository_storage("nonsense://x/y")
