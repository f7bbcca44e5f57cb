"""A disk that forgets what was not synced, fails, or fills up, at every step of an update.

Events are what reaches the disk: each fsync, rename and removal. A power cut at an event leaves what was durable
then: contents of files as of their last fsync, names in a folder as of the folder's. Three kinds are tried: what
was not synced is lost; it is there and torn; it happens to be there. Beside that the event fails with an error.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.shipping.world import World, answer_of, copied

from edgewright.contract.errors import EdgewrightError
from edgewright.device.agent import Agent
from edgewright.device.update.self_test import Probation

__all__ = ["ERRORS", "KINDS", "Disk", "PowerCutError", "Tally", "try_all", "update_twice"]

Kind = Literal["lost", "torn", "kept", "EIO", "ENOSPC"]
KINDS: tuple[Kind, ...] = ("lost", "torn", "kept", "EIO", "ENOSPC")
ERRORS: dict[str, int] = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


class PowerCutError(BaseException):
    """Nothing may catch it, as nothing can stay a power cut."""


@dataclass(slots=True)
class _File:
    """A file or a folder as the disk holds it, under whatever name.

    Attributes:
        content: As of its last fsync; None if it had none.
        names: Of a folder, as of its last fsync; None for a file.
    """

    content: bytes | None = None
    names: "dict[str, _File] | None" = None


@dataclass(slots=True)
class Disk:
    """What is durable below a folder.

    Attributes:
        root: The folder.
        kind: What happens at the event.
        at: Which event, from 0; none if negative.
        after: Where a cut leaves what the disk holds.
        events: So far.
    """

    root: Path
    kind: Kind
    at: int
    after: Path
    events: int = 0
    # By inode number, which is used again once a file is gone.
    _files: dict[int, _File] = field(default_factory=dict)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have everything below the folder go through this disk; what lies there now is durable."""
        for folder, _, names in os.walk(self.root, topdown=False):
            for path in (Path(folder) / name for name in names):
                self._file(path).content = path.read_bytes()
            self._file(Path(folder)).names = self._entries(Path(folder))
        real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink", "rmdir")}

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not self._is_ours(path):
                real["fsync"](descriptor)
                return
            self._event()
            if path.is_dir():
                self._file(path).names = self._entries(path)
            else:
                self._file(path).content = path.read_bytes()

        def before(name: str) -> Callable[..., Any]:
            def act(path: Any, *rest: Any, dir_fd: int | None = None, **more: Any) -> Any:
                given = {} if dir_fd is None else {"dir_fd": dir_fd}
                if isinstance(path, str | os.PathLike):
                    folder = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
                    gone = folder / (rest[0] if rest else path)
                    if self._is_ours(gone):
                        self._event()
                        if gone.exists() or gone.is_symlink():
                            self._files.pop(gone.lstat().st_ino, None)
                return real[name](path, *rest, **given, **more)

            return act

        try:
            setattr(os, "fsync", fsync)  # noqa: B010 - its declared type also takes files
            for name in ("replace", "rename", "unlink", "rmdir"):
                setattr(os, name, before(name))
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _file(self, path: Path) -> _File:
        return self._files.setdefault(path.lstat().st_ino, _File())

    def _entries(self, folder: Path) -> dict[str, _File]:
        return {path.name: self._file(path) for path in folder.iterdir()}

    def _is_ours(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def _event(self) -> None:
        self.events += 1
        if self.events - 1 != self.at:
            return
        if self.kind in ERRORS:
            raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]))
        self.at = -1
        shutil.rmtree(self.after, ignore_errors=True)
        if self.kind == "lost":
            self._rebuild(self._file(self.root), self.root, self.after)
        else:
            self._copy(self.root, self.after)
        raise PowerCutError

    def _rebuild(self, folder: _File, live: Path, to: Path) -> None:
        to.mkdir()
        for name, file in (folder.names or {}).items():
            if file.names is not None or (file.content is None and (live / name).is_dir()):
                self._rebuild(file, live / name, to / name)
            else:
                (to / name).write_bytes(file.content or b"")

    def _copy(self, folder: Path, to: Path) -> None:
        to.mkdir()
        for path in folder.iterdir():
            if path.is_dir():
                self._copy(path, to / path.name)
                continue
            content = path.read_bytes()
            if self.kind == "torn" and self._file(path).content != content:
                content = content[: len(content) // 2]
            (to / path.name).write_bytes(content)


@dataclass(slots=True)
class Tally:
    """What became of faults.

    Attributes:
        faults: How many were injected.
        bad: In words, those after which the device did not serve a verified model or did not get the new one.
        states: In which states of the update they came, with their number.
    """

    faults: int = 0
    bad: list[str] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)


def update_twice(agent: Agent) -> None:
    """Check and settle, as an agent's process does."""
    agent.check_for_update()
    for _ in range(3):
        answer_of(agent)
    agent.settle_probation()


def try_all(world: World, state: Path, versions: dict[str, float], *, step: int = 1) -> Tally:
    """Fail at every event of an update in every way.

    Args:
        world: With a rollout that the device has not followed yet.
        state: Of a device with a proven release.
        versions: What each version's model multiplies by.
        step: Only every so many-th event is tried.
    """
    tally = Tally()
    wanted = list(versions)[-1]
    events = _events(world, state)
    for kind in KINDS:
        for at in range(0, events, step):
            _try(world, state, versions, wanted, kind, at, tally)
    return tally


def _agent(state: Path) -> Agent:
    return Agent(state, probation=Probation(min_inferences=2))


def _events(world: World, state: Path) -> int:
    copy = copied(state, world.path / "faulty")
    disk = Disk(copy, "kept", -1, world.path / "after")
    agent = _agent(copy)
    with disk.watched():
        update_twice(agent)
    agent.close()
    return disk.events


def _try(
    world: World, state: Path, versions: dict[str, float], wanted: str, kind: Kind, at: int, tally: Tally
) -> None:
    copy = copied(state, world.path / "faulty")
    disk = Disk(copy, kind, at, world.path / "after")
    agent = _agent(copy)
    before = str(agent.journal_record.state)
    try:
        with disk.watched():
            update_twice(agent)
    except (PowerCutError, EdgewrightError, OSError):
        before = str(agent.journal_record.state)
    tally.faults += 1
    tally.states[before] = tally.states.get(before, 0) + 1
    if agent._lock is not None:
        agent._lock.release()
    if kind not in ERRORS and disk.at < 0:
        copy = copied(world.path / "after", copy)
    fault = f"{kind} at event {at} ({before})"
    try:
        again = _agent(copy)
        version, answered = again.status()["version"], answer_of(again)
        if version is None or versions.get(version) != answered:
            tally.bad.append(f"{fault}: serves {version}, which answers {answered}")
        for _ in range(3):
            update_twice(again)
        if (again.status()["version"], answer_of(again)) != (wanted, versions[wanted]):
            tally.bad.append(
                f"{fault}: stays with {again.status()['version']}, {again.journal_record.last_refusal}"
            )
        again.close()
    except (EdgewrightError, OSError) as error:
        tally.bad.append(f"{fault}: {type(error).__name__} {error}")
