"""Roles, secrets and sessions."""

import itertools
from typing import get_args

import pytest

from edgewright.contract.errors import InputError
from edgewright.server import access_control
from edgewright.server.access_control import (
    MIN_ROLES,
    Permission,
    UserRole,
    csrf_token,
    has_permission,
    hash_password,
    is_csrf_token,
    is_session_alive,
    new_secret,
    new_session,
    password_matches,
    role_by_name,
    secret_hash,
)

PASSWORD = "correct horse battery"  # noqa: S105 (nobody's)


def test_every_right_has_a_role_and_a_higher_role_never_may_less() -> None:
    assert set(MIN_ROLES) == set(get_args(Permission))
    for right in MIN_ROLES:
        assert [has_permission(role, right) for role in UserRole] == sorted(
            has_permission(role, right) for role in UserRole
        )
        assert has_permission(UserRole.RELEASE_MANAGER, right)


def test_nobody_has_a_right_that_does_not_exist() -> None:
    assert not has_permission(UserRole.RELEASE_MANAGER, "sign releases")  # type: ignore[arg-type]


def test_a_viewer_only_looks_and_an_operator_can_stop_but_not_start() -> None:
    assert [right for right in MIN_ROLES if has_permission(UserRole.VIEWER, right)] == ["look"]
    assert has_permission(UserRole.OPERATOR, "roll back")
    assert has_permission(UserRole.OPERATOR, "pause rollouts")
    assert not any(
        has_permission(UserRole.OPERATOR, right)
        for right in ("start rollouts", "advance rollouts", "approve actions", "manage access")
    )


def test_roles_are_read_as_they_are_written() -> None:
    assert role_by_name("release manager") is role_by_name("release_manager") is UserRole.RELEASE_MANAGER
    for name in ("admin", "", "VIEWER "):
        with pytest.raises(InputError, match="no role"):
            role_by_name(name)


def test_secrets_are_long_different_and_say_what_they_are_for() -> None:
    secrets = [new_secret("token") for _ in range(100)]
    assert len(set(secrets)) == len({secret_hash(secret) for secret in secrets}) == 100
    assert all(secret.startswith("ew_token_") and len(secret) == 9 + 43 for secret in secrets)
    assert secret_hash("x\ud800") != secret_hash("x")


def test_a_password_matches_itself_alone() -> None:
    kept = hash_password(PASSWORD)
    assert password_matches(PASSWORD, kept)
    for other in ("correct horse batterz", "", PASSWORD + " ", "\ud800" * 12, "x" * 5000):
        assert not password_matches(other, kept)


def test_two_people_with_one_password_have_different_hashes() -> None:
    assert hash_password(PASSWORD) != hash_password(PASSWORD)
    assert PASSWORD not in hash_password(PASSWORD)


def test_the_hash_of_a_password_is_scrypts() -> None:
    # From Python's hashlib, which is OpenSSL's; computed apart from the module.
    import hashlib

    kept = hash_password(PASSWORD, salt=bytes(range(16)))
    parts = kept.split("$")
    assert parts[:5] == ["scrypt", "32768", "8", "1", bytes(range(16)).hex()]
    own = hashlib.scrypt(PASSWORD.encode(), salt=bytes(range(16)), n=32768, r=8, p=1, maxmem=1 << 26, dklen=32)
    assert parts[5] == own.hex()


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 1025])
def test_a_short_or_endless_password_is_refused(password: str) -> None:
    with pytest.raises(InputError, match="letters"):
        hash_password(password)


def test_a_stranger_costs_as_much_work_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = hash_password(PASSWORD)
    derived = access_control._derived
    asked: list[str] = []

    def counted(password: str, salt: bytes) -> bytes:
        asked.append(password)
        return derived(password, salt)

    monkeypatch.setattr(access_control, "_derived", counted)
    assert not password_matches("wrong", kept)
    assert not password_matches("wrong", None)
    assert asked == ["wrong", "wrong"]


@pytest.mark.parametrize("kept", ["", "scrypt", "plain$1$2$3$4$5", "scrypt$2$8$1$00$00"])
def test_what_was_not_kept_by_this_matches_nothing(kept: str) -> None:
    assert not password_matches("", kept)


def test_the_hash_that_stands_for_nobody_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_control, "_derived", lambda password, salt: bytes(32))
    assert not password_matches("anything", None)


def test_a_session_lives_while_it_is_used_and_not_over() -> None:
    secret, session = new_session("ann", UserRole.VIEWER, now=0.0, lifetime_seconds=100.0)
    assert secret.startswith("ew_session_")
    assert [is_session_alive(session, now=at, idle_seconds=50.0) for at in (0.0, 49.9, 50.0)] == [True, True, False]
    assert [is_session_alive(session, now=at, idle_seconds=500.0) for at in (99.9, 100.0)] == [True, False]


def test_a_forms_token_belongs_to_one_session() -> None:
    one, two = (new_secret("session") for _ in range(2))
    assert is_csrf_token(one, csrf_token(one))
    for told in (csrf_token(two), "", one, "ü"):
        assert not is_csrf_token(one, told)
    assert len({csrf_token(one), secret_hash(one), one}) == 3
    assert all(a != b for a, b in itertools.pairwise((csrf_token(one), csrf_token(two))))
