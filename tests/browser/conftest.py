"""A served fleet, filled with what real code made: a compressed release, decisions by the real rules, sums."""

import contextlib
import datetime
import os
import runpy
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from edgewright.cli.main import main
from edgewright.contract.alert import ActionPolicy, AlertRule
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.api.operator_api import CreateQuery, RolloutAction, StartRollout
from edgewright.contract.config.fleet import FleetConfig
from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.decision import CONTROL_ARM, DeviceOutcome
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutStage
from edgewright.fleet.cohort_drift import CohortSums, assess_cohorts
from edgewright.privacy.query_calibration import fill_template
from edgewright.rollout.decision import decide_rollout
from edgewright.rollout.outcome_counts import count_outcomes
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import current_plan, current_policy, list_releases, publish_plan
from edgewright.trust.repository.bootstrap import read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from edgewright.server.read_models import PendingAction
    from edgewright.server.services import Services
    from edgewright.server.store.records import StoredDevice

CHROMIUM = Path("/usr/bin/chromium")
MISSING = next(
    (
        f"the package {name} is not installed"
        for name in ("playwright", "axe_playwright_python", "litestar", "granian")
        if find_spec(name) is None
    ),
    "" if CHROMIUM.exists() else f"there is no {CHROMIUM}",
)
HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "examples/digits"
SCREENSHOTS = bool(os.environ.get("EDGEWRIGHT_SCREENSHOTS"))
"""Whether docs/images/page is written anew; what attackers write is left out of it."""
EVIL = "Berlin <east>" if SCREENSHOTS else '<script>document.title="taken"</script><img src=x onerror=alert(1)>'
PASSWORD = "correct horse battery"  # noqa: S105 - of test users
HOUR_SECONDS = 3600.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@dataclass
class Book:
    """Changes rollouts as the server does; what waits for approval is made up."""

    world: "World"
    waiting: "list[PendingAction]" = field(default_factory=list)
    settled: list[tuple[str, str, bool]] = field(default_factory=list)

    def start_rollout(self, who: str, asked: StartRollout) -> tuple[RolloutPlan, tuple[str, ...]]:
        raise NotImplementedError

    def change_rollout(
        self, who: str, model: str, device_class: str, act: RolloutAction, reason: str
    ) -> RolloutPlan:
        from edgewright.server.commands.service import CommandService

        return CommandService(self.world.services).change_rollout(who, model, device_class, act, reason)

    def create_query(self, who: str, model: str, device_class: str, asked: CreateQuery) -> tuple[str, ...]:
        raise NotImplementedError

    def end_query(self, who: str, query_id: str) -> None:
        raise NotImplementedError

    def pending_actions(self) -> "Sequence[PendingAction]":
        return self.waiting

    def decide_action(self, who: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        self.waiting = [one for one in self.waiting if one.id != item]
        self.settled.append((who, item, approve))
        return ()

    def create_job(self, who: str, device: str, body: bytes) -> str:
        raise NotImplementedError


class World:
    """A served fleet."""

    url: str
    services: "Services"
    acting: Book
    devices: "list[StoredDevice]"

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self) -> KeyFolder:
        return KeyFolder(self.path / "KEYS", lambda _: os.environ["EDGEWRIGHT_PASSPHRASE"])

    def online(self) -> KeyFolder:
        """The keys that a server has."""
        folder = self.path / "ONLINE"
        if not folder.exists():
            folder.mkdir()
            for name in ("trusted-root.json", "online.pub.json", "online.key.json"):
                (folder / name).write_bytes((self.path / "KEYS" / name).read_bytes())
        return KeyFolder(folder, lambda _: "")

    def repository(self) -> Repository:
        return Repository(LocalStorage(self.path / "REPO"), read_trusted_root(self.path / "KEYS"))

    def start_rollout(self, device_class: str, *, model: str = "digits", devices: int = 1600) -> RolloutPlan:
        """Put a rollout at its second stage, with evidence that the real rules have judged."""
        from edgewright.server.store import records

        repository = self.repository()
        digest = dict(list_releases(repository, model))["1.1.0"]
        before = current_plan(repository, model, device_class)
        policy = current_policy(repository, model, device_class)
        assert policy is not None
        rules = (HealthRule("crash", 0.02), HealthRule("self_test", 0.05, 0.9))
        plan = RolloutPlan(
            *(model, device_class, "autumn"),
            epoch=policy.epoch,
            counter=1 if before is None else before.counter + 1,
            arms=(RolloutArm("1.1.0", digest),),
            stages=(RolloutStage(0.1, 3600.0, rules), RolloutStage(0.5, 7200.0, rules), RolloutStage(1.0)),
            stage=1,
            stage_started_at=_iso(-3 * HOUR_SECONDS),
        )
        publish_plan(repository, self.keys(), plan)
        random = np.random.default_rng(7)
        outcomes = [
            DeviceOutcome(
                f"d{number}",
                CONTROL_ARM if number % 2 else 0,
                _iso(-600 if number % 16 > 1 else 3600),
                {"crash": float(random.random() < 0.03), "self_test": 0.0} if number % 39 else None,
            )
            for number in range(devices)
        ]
        store = self.services.store
        subject = f"{model}/{device_class}/autumn"
        for part in (devices // 8, devices // 2, devices):
            now = datetime.datetime.now(datetime.UTC)
            decision = decide_rollout(plan, policy, count_outcomes(plan, outcomes[:part], now), now)
            content = msgspec.json.encode({"decision": decision})
            number = store.decisions.last_number(subject) + 1
            said = "; ".join(decision.waiting_for or decision.reasons)
            at = time.time() - HOUR_SECONDS + number
            store.decisions.put(
                records.StoredDecision(subject, number, at, decision.action, said, msgspec.Raw(content))
            )
        return plan


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A fleet behind a real server."""
    from edgewright.server.app import create_app
    from edgewright.server.process import free_port, run_server
    from edgewright.server.services import Services
    from edgewright.server.store.store import create_store
    from edgewright.server.web.router import page_router

    made = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing_keys, "_SCRYPT_N", 2**4)
        patch.setenv("EDGEWRIGHT_PASSPHRASE", "correct horse battery staple")
        patch.setenv("EDGEWRIGHT_STATE", str(made.path / "state"))
        _publish(made.path)
        store = create_store(f"sqlite:///{made.path / 'fleet.db'}")
        fleet = FleetConfig(
            alerts=(
                AlertRule("many-offline", "offline", above=0.2, for_seconds=600.0, actions=("notify", "pause")),
                AlertRule("slow", "latency_ms", above=20.0, severity="info"),
            ),
            actions=(ActionPolicy("pause", needs_approval=True),),
        )
        made.services = Services(
            store,
            "fleet:3f9a1c2b",
            made.repository,
            LocalStorage(made.path / "REPO"),
            made.online(),
            fleet,
            time.time,
        )
        made.acting = Book(made)
        made.devices = _fill(made)
        found = assess_cohorts(_PROFILE, _cohorts(), release="r", size=0.05, alpha=0.05)
        router = page_router(
            made.services, made.acting, findings=lambda _, device_class: found if device_class == "camera" else None
        )
        port, ended, ready = free_port("127.0.0.1", 0), threading.Event(), threading.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # how the API's parameters are declared
            app = create_app(made.services, made.acting, pages=[router])
        thread = threading.Thread(
            target=run_server,
            args=(app, "127.0.0.1", port),
            kwargs={"ended": ended, "ready": ready.set},
            daemon=True,
        )
        thread.start()
        assert ready.wait(20)
        made.url = f"http://127.0.0.1:{port}"
        yield made
        ended.set()
        thread.join(20)
        store.close()


def _iso(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).isoformat(timespec="seconds")


def _publish(path: Path) -> None:
    """Compress the digits for a few seconds and publish what came out, for two classes of devices."""
    held_out: dict[str, Any] = runpy.run_path(str(DIGITS / "data.py"))["held_out"]()
    np.savez(path / "digits.npz", **held_out)
    signing = ("--keys", str(path / "KEYS"), "--repo", str(path / "REPO"))
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert main(["keys", "init", *signing]) == 0
        model, limits = str(DIGITS / "model.onnx"), ("--time-limit", "2", "--trials", "2", "--max-drop", "0.02")
        out = str(path / "out")
        code = main(["compress", model, "--data", str(path / "digits.npz"), "--out", out, *limits, "--json"])
        assert code in (0, 1)
        for device_class in ("camera", "hall"):
            named = ("--name", "digits" if device_class == "camera" else "doors", "--device-class", device_class)
            assert main(["publish", model, *named, "--version", "1.0.0", *signing]) == 0
            more = ("--licence", EVIL, *signing)
            assert main(["publish", out, *named, "--version", "1.1.0", *more]) == 0


def _fill(world: World) -> "list[StoredDevice]":
    """Enrol devices, and have them say what devices say, for two days."""
    from edgewright.server.access_control import UserRole
    from edgewright.server.read_models import PendingAction
    from edgewright.server.store.records import Alert, CheckIn

    store, now = world.services.store, time.time()
    for name, role in (("ann", UserRole.RELEASE_MANAGER), ("otto", UserRole.OPERATOR), ("vera", UserRole.VIEWER)):
        store.accounts.add_user(name, role, PASSWORD, now=now - 9 * 86400)
    store.accounts.add_token("nightly", UserRole.VIEWER, created_by="user:ann", now=now, lifetime_seconds=86400.0)
    devices = []
    for number in range(70):
        labels = {"site": EVIL if number == 0 else ("berlin", "paris")[number % 2]}
        token = store.devices.create_enrolment_token(
            "hall" if number % 5 == 4 else "camera",
            created_by="user:ann",
            now=now,
            lifetime_seconds=60.0,
            labels=labels,
        )
        devices.append(store.devices.enrol(token, os.urandom(32), now=now - 9 * 86400))
    for hour in range(48, -1, -1):
        batch = []
        for number, device in enumerate(devices):
            if (number % 9 == 8 and hour < 5) or number == 69 or (hour > 20 and number % 7 == 3):
                continue
            model = "digits" if device.device_class == "camera" else "doors"
            new = number % 4 == 0 and hour < 8
            refusal = Refusal("disk", EVIL, f"the disk is full {EVIL}") if number in (0, 11) and hour < 6 else None
            status = DeviceStatus(
                *(model, "1.1.0" if new else "1.0.0", ("b" if new else "a") * 64),
                *("probation" if new and hour < 2 else "idle", "1.0.0"),
                trial="1.1.0" if new else "",
                refusal=refusal,
                failed_inferences=int(number % 13 == 0),
                latency_seconds=0.004 + number * 1e-5,
                free_bytes=10**9,
                battery_level=0.8,
                agent_version="0.1",
                metadata_checked_at=_iso(-hour * HOUR_SECONDS),
            )
            at = now - hour * HOUR_SECONDS - number
            batch.append(CheckIn(device.id, device.device_class, status, at, arm="1.1.0" if new else ""))
        store.check_ins.store_batch(batch)
    store.alerts.put(
        [
            Alert("many-offline", "camera", "firing", now - 1800, now, f"offline on camera is 0.24 {EVIL}"),
            Alert("slow", "hall", "pending", now - 60, now, "latency_ms on hall is 21, above 20"),
        ]
    )
    world.acting.waiting.append(
        PendingAction("w1", "pause", "digits/camera/autumn", "many-offline fires", now - 1700)
    )
    for device_class in ("camera", "hall"):
        template = QueryTemplate(
            *("signals", "histogram", device_class),
            clip=100.0,
            min_noise=0.05,
            min_cohort=100,
            max_rho=0.05,
            min_interval_seconds=86400.0,
            expires_at=_iso(86400.0 * 100),
            signals=(CountedSignal("mean", 17), CountedSignal("class", 11)),
            subgroups=("site",),
        )
        for number in range(3):
            asked = Query(
                id=f"{device_class}-{number}",
                template="signals",
                template_digest="0" * 64,
                window_start=_iso(-2 * 86400.0),
                window_end=_iso(-86400.0),
                deadline=_iso(86400.0),
                bits=32,
                scale=1.0,
                sigma=2.0,
                min_cohort=100,
                max_cohort=10_000,
                rho=1.0,
                backend="helper",
                seed=os.urandom(32).hex(),
                subgroup={"site": EVIL} if number == 2 else {},
            )
            query = fill_template(asked, template, 1.0)
            store.queries.store_query(
                query, template, "digits" if device_class == "camera" else "doors", now=now - number
            )
            if number:
                store.queries.finish_query(query.id, result={"sums": {}}, devices=140, now=now)
    for number in range(60):
        store.audit.write("user:ann", "look", f"{number} {EVIL}", at=now, detail={"said": EVIL})
    world.start_rollout("camera")
    return devices


_PROFILE = ReferenceProfile(
    "image",
    64,
    tuple(
        ReferenceSignal(name, tuple(np.linspace(-1, 1, 15).tolist()), (*[400] * 16, 0))
        for name in ("mean", "spread", "edge")
    ),
)


def _cohorts() -> list[CohortSums]:
    """Sums whose first signal has moved, and whose second subgroup fares worse."""
    random, found = np.random.default_rng(0), []
    for number in range(24):
        site = ("berlin", "paris")[number % 2]
        counts = {}
        for name, moved in (("mean", 0.08), ("spread", 0.0), ("edge", 0.0)):
            shares = np.full(16, 1 / 16)
            shares[:8] -= moved / 8
            shares[8:] += moved / 8
            scale = 20 if name == "edge" else 200
            total = sum(random.multinomial(100, each) for each in random.dirichlet(shares * scale, 40))
            counts[name] = [*(total + random.normal(0, 20, 16)).tolist(), float(random.normal(0, 20))]
        wrong = random.binomial(4000, 0.2 if site == "paris" else 0.1)
        counts["outcome.wrong"] = (np.array([4000 - wrong, wrong]) + random.normal(0, 20, 2)).tolist()
        found.append(
            CohortSums(
                query=f"q{number}",
                query_digest=f"d{number}",
                template="signals",
                template_digest="t",
                release="r",
                window=("2026-06-01", "2026-06-02"),
                device_count=40,
                noise_sd=20.0,
                out_of_range=int(number == 0),
                sums=counts,
                subgroup={"site": EVIL if number == 3 else site},
            )
        )
    return found


# For a file alone: its event loop would be in the way of others that begin one.
@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Seen:
    """What went wrong in a browser."""

    faults: list[str] = field(default_factory=list)

    def add(self, fault: str, really: bool = True) -> None:
        if really:
            self.faults.append(fault)

    def asked(self, dialog: Any) -> None:
        self.faults.append(dialog.message)
        dialog.dismiss()


@pytest.fixture
def opened(world: World, browser: "Browser") -> "Iterator[Callable[..., tuple[Page, Seen]]]":
    """Opens a browser's window, logged in as somebody, that notes all that goes wrong."""
    contexts: list[BrowserContext] = []

    def run(user: str = "ann", **given: Any) -> "tuple[Page, Seen]":
        context = browser.new_context(base_url=world.url, **given)
        contexts.append(context)
        page, seen = context.new_page(), Seen()
        page.on("console", lambda said: seen.add(said.text, said.type in ("error", "warning")))
        page.on("pageerror", lambda error: seen.add(str(error)))
        page.on("dialog", lambda dialog: seen.asked(dialog))
        # A page that is left takes its open requests with it.
        page.on("requestfailed", lambda one: seen.add(f"{one.url} failed", one.failure != "net::ERR_ABORTED"))
        page.on("request", lambda one: seen.add(f"asked {one.url}", not one.url.startswith((world.url, "data:"))))
        page.on("response", lambda answer: seen.add(f"{answer.url} {answer.status}", answer.status >= 400))
        if user:
            name = f"{user}:{PASSWORD}"
            secret = _SESSIONS.get(name)
            if secret is None:
                made = world.services.store.accounts.log_in(
                    user, PASSWORD, now=time.time(), lifetime_seconds=3600.0
                )
                assert made is not None
                secret = _SESSIONS[name] = made[0]
            context.add_cookies(
                [{"name": "edgewright_session", "value": secret, "url": world.url, "sameSite": "Strict"}]
            )
        return page, seen

    yield run
    for context in contexts:
        context.close()


_SESSIONS: dict[str, str] = {}
