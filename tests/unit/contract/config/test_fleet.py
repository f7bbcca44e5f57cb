"""What the project file says of a fleet, and how it refuses."""

import re
from pathlib import Path

import msgspec
import pytest

from edgewright.contract.alert import ActionPolicy, AlertRule
from edgewright.contract.config import fleet
from edgewright.contract.config.fleet import (
    EmailTarget,
    FleetConfig,
    FleetMonitoring,
    NotificationTargets,
    RetirementPolicy,
    RetrainingConfig,
    WebhookTarget,
    load_fleet,
    parse_fleet,
)
from edgewright.contract.config.project import _ProjectText, parse_project
from edgewright.contract.errors import ProjectError

FULL = """
[fleet]
outcome_age = "30min"
offline_after = "1h"
evaluation_interval = "5s"
alpha = 0.01
retire_after_versions = 5
retire_unused = "90d"

[[alert]]
name = "dark"
metric = "offline"
above = 0.1
clear_at = 0.05
for = "10min"
device_class = "camera"
severity = "critical"
actions = ["notify", "roll back", "retrain"]

[[alert]]
name = "moved"
metric = "drift.mean"
above = 3

[[action]]
action = "roll back"
cooldown = "6h"
max_per_day = 1
needs_approval = true

[[notify.webhook]]
url = "https://hooks.example/in"
secret_env = "HOOK"
networks = ["10.0.0.0/8"]

[[notify.email]]
host = "mail.example"
sender = "fleet@example.org"
recipients = ["ann@example.org", "bob@example.org"]
port = 465
user = "fleet"
password_env = "MAIL"
tls = "tls"

[retraining]
command = ["make", "train"]
timeout = "2h"
"""


def test_every_key_arrives_in_seconds_and_records() -> None:
    assert parse_fleet(FULL) == FleetConfig(
        FleetMonitoring(1800.0, 3600.0, 5.0, 0.01),
        (
            AlertRule(
                *("dark", "offline", 0.1, None, 0.05, 600.0, "camera", "critical"),
                ("notify", "roll back", "retrain"),
            ),
            AlertRule("moved", "drift.mean", above=3),
        ),
        (ActionPolicy("roll back", 21600.0, 1, True),),
        NotificationTargets(
            (WebhookTarget("https://hooks.example/in", "HOOK", ("10.0.0.0/8",)),),
            (
                EmailTarget(
                    *("mail.example", "fleet@example.org", ("ann@example.org", "bob@example.org"), 465, "fleet"),
                    *("MAIL", "tls"),
                ),
            ),
        ),
        RetrainingConfig(("make", "train"), "", 7200.0),
        RetirementPolicy(5, 90 * 86400.0),
    )


def test_a_file_without_a_fleet_has_the_defaults_and_one_without_a_model_is_enough(tmp_path: Path) -> None:
    assert parse_fleet('[model]\npath = "m.onnx"\n') == parse_fleet("") == FleetConfig()
    (tmp_path / "edgewright.toml").write_text(FULL)
    assert load_fleet(tmp_path / "edgewright.toml") == parse_fleet(FULL)
    with pytest.raises(ProjectError, match="does not exist"):
        load_fleet(tmp_path / "other.toml")


def test_a_project_may_say_it_too_and_is_checked_for_it() -> None:
    base = 'model.path = "m.onnx"\ndata.source = "d.npz"\n'
    assert parse_project(base + FULL) == parse_project(base)
    with pytest.raises(ProjectError, match=r"fleet\.alpha|alpha is 0\.7"):
        parse_project(base + "[fleet]\nalpha = 0.7")


def test_both_readers_know_the_same_sections() -> None:
    names = {field.encode_name for field in msgspec.structs.fields(_ProjectText)}
    assert {*fleet.FLEET_SECTIONS, *fleet._OTHERS} == names


ALERT = '[[alert]]\nname = "a"\nmetric = "offline"\nabove = 0.1\n'
MAIL = '[[notify.email]]\nhost = "h"\nsender = "a@b"\n'
REFUSED = {
    "unknown section": ("[fleets]\n", r"fleets \(line 1\): unknown key", "did you mean 'fleet'"),
    "unknown key": ("[fleet]\noffline = 1\n", r"fleet\.offline \(line 2\): unknown key 'offline'", "did you mean"),
    "keys of 0.1": (
        '[fleet]\noutcome = "1h"\nsilent = "2h"\nalpha = 0.05\n',
        r"fleet\.outcome \(line 2\): 'outcome' is a key of Edgewright 0\.1",
        "outcome is now outcome_age, silent is now offline_after",
    ),
    "time without a unit": (
        "[fleet]\noffline_after = 60\n",
        r"fleet\.offline_after \(line 2\)",
        'offline_after = "2h"',
    ),
    "wrong unit": (
        '[fleet]\nevaluation_interval = "5KB"\n',
        r"fleet\.evaluation_interval \(line 2\).*not a time",
        "number and one of",
    ),
    "for": (ALERT + 'for = "ten"\n', r"alert\[1\]\.for \(line 5\)", "number and one of"),
    "no list": ('[alert]\nname = "a"\n', "must be a list of tables", r"\[\[alert\]\]"),
    "no metric": ('[[alert]]\nname = "a"\nmetric = "speed"\nabove = 1\n', r"alert\[1\] \(line 1\)", "Use failing"),
    "a family without a name": ('[[alert]]\nname = "a"\nmetric = "drift"\nabove = 1\n', "no metric", "after a dot"),
    "two of one name": (ALERT + ALERT, r"alert\[2\]\.name \(line 6\) is 'a' again", "own name"),
    "no such action": ('[[action]]\naction = "sell"\n', r"action\[1\]\.action \(line 2\)", "roll back"),
    "two policies": ('[[action]]\naction = "ask"\n' * 2, r"action\[2\]\.action.*'ask' again", "own action"),
    "retrain without how": (ALERT + 'actions = ["retrain"]\n', "nothing says how", r"\[retraining\]"),
    "http": (
        '[[notify.webhook]]\nurl = "http://h"\nsecret_env = "S"\n',
        r"notify\.webhook\[1\] \(line 1\)",
        "https",
    ),
    "no network": (
        '[[notify.webhook]]\nurl = "https://h"\nsecret_env = "S"\nnetworks = ["10.0.0.1/8"]\n',
        "has host bits set",
        "10.0.0.0/8",
    ),
    "a header in an address": (
        MAIL + 'recipients = ["a@b\\nBcc: c@d"]\n',
        r"notify\.email\[1\].*no address",
        "name@host",
    ),
    "two addresses in one": (MAIL + 'recipients = ["a@b, c@d"]\n', "no address", "name@host"),
    "nobody": (MAIL + "recipients = []\n", "email to 0 addresses", "at least one"),
    "a password in the clear": (
        MAIL + 'recipients = ["c@d"]\nuser = "u"\npassword_env = "P"\ntls = "none"\n',
        "in the clear",
        "starttls",
    ),
    "a user without": (MAIL + 'recipients = ["c@d"]\nuser = "u"\n', "password_env", "both or neither"),
    "a tls that is none": (MAIL + 'recipients = ["c@d"]\ntls = "ssl"\n', r"notify\.email\[1\]\.tls", "starttls"),
    "both": ('[retraining]\ncommand = ["a"]\nfunction = "a:b"\n', "command or a function", "one of them"),
    "a function that is a path": ('[retraining]\nfunction = "../a.py"\n', "function is", "module:function"),
    "keep nothing": ("[fleet]\nretire_after_versions = 0\n", "retire_after_versions is 0", "one version"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_named_with_its_place_and_the_next_step(what: str) -> None:
    text, message, remedy = REFUSED[what]
    with pytest.raises(ProjectError, match=message) as caught:
        parse_fleet(text)
    assert re.search(remedy, caught.value.remedy)
