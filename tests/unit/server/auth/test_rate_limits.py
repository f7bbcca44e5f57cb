"""How often somebody may ask, and who somebody is."""

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.live_server import Plant

from edgewright.server.auth.rate_limits import RateLimiter, client_address, limited_network

GAPS = st.lists(st.floats(0, 100), min_size=1, max_size=60)
RATES = st.floats(0.01, 50)
BURSTS = st.integers(1, 30)


@given(gaps=GAPS, per_s=RATES, burst=BURSTS)
def test_nobody_gets_more_than_a_burst_and_the_rate(gaps: list[float], per_s: float, burst: int) -> None:
    limiter = RateLimiter(per_s=per_s, burst=burst)
    now, allowed = 0.0, 0
    for gap in gaps:
        now += gap
        allowed += limiter.allows("a", now)
        assert allowed <= burst + per_s * now + 1e-6


@given(gaps=GAPS, per_s=RATES, burst=BURSTS)
def test_who_asks_slowly_enough_is_never_sent_away(gaps: list[float], per_s: float, burst: int) -> None:
    limiter = RateLimiter(per_s=per_s, burst=burst)
    now = 0.0
    for gap in gaps:
        now += gap + 1.000001 / per_s
        assert limiter.allows("a", now)


@given(burst=BURSTS, per_s=RATES, idle_seconds=st.floats(0, 1e6))
def test_a_pause_gives_no_more_than_a_burst(burst: int, per_s: float, idle_seconds: float) -> None:
    limiter = RateLimiter(per_s=per_s, burst=burst)
    while limiter.allows("a", 0.0):
        pass
    assert sum(limiter.allows("a", idle_seconds) for _ in range(burst + 5)) <= burst


@given(asks=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=60), per_s=RATES, burst=BURSTS)
def test_nobody_uses_up_what_is_another_s(asks: list[tuple[str, float]], per_s: float, burst: int) -> None:
    together = RateLimiter(per_s=per_s, burst=burst)
    alone = {name: RateLimiter(per_s=per_s, burst=burst) for name in "abc"}
    now = 0.0
    for name, gap in asks:
        now += gap
        assert together.allows(name, now) == alone[name].allows(name, now)


@given(names=st.lists(st.integers(0, 50), max_size=200), most=st.integers(1, 20))
def test_no_more_names_are_remembered_than_there_is_room_for(names: list[int], most: int) -> None:
    limiter = RateLimiter(per_s=1, burst=2, max_names=most)
    for at, name in enumerate(names):
        limiter.allows(str(name), float(at))
        assert len(limiter._left) <= most


@given(made_up=st.lists(st.text(max_size=20), max_size=5), client=st.ip_addresses(), proxies=st.integers(1, 4))
def test_what_a_client_writes_does_not_change_who_it_is(
    made_up: list[str], client: ipaddress.IPv4Address | ipaddress.IPv6Address, proxies: int
) -> None:
    ours = [str(client), *(f"10.0.0.{n}" for n in range(proxies - 1))]
    given_ = ", ".join([each.replace(",", "") for each in made_up] + ours).encode("utf-8", "replace")
    assert client_address("10.0.0.9", [(b"x-forwarded-for", given_)], proxies=proxies) == str(client)
    assert client_address("10.0.0.9", [(b"x-forwarded-for", given_)], proxies=0) == "10.0.0.9"


@pytest.mark.parametrize(
    ("lines", "proxies", "client"),
    [
        ([], 1, "10.0.0.9"),
        ([b"192.0.2.1"], 2, "10.0.0.9"),
        ([b"192.0.2.1:4711"], 1, "192.0.2.1"),
        ([b"[2001:db8::1]:4711"], 1, "2001:db8::1"),
        ([b"2001:db8::1"], 1, "2001:db8::1"),
        ([b"1.1.1.1", b"192.0.2.1"], 1, "192.0.2.1"),
        ([b"192.0.2.1", b"1.1.1.1"], 2, "192.0.2.1"),
        ([b"unknown"], 1, "10.0.0.9"),
        ([b"192.0.2.1,"], 1, "10.0.0.9"),
        ([b"\xff"], 1, "10.0.0.9"),
        ([b""], 1, "10.0.0.9"),
    ],
)
def test_the_header_is_read_from_the_right(lines: list[bytes], proxies: int, client: str) -> None:
    headers = [(b"x-forwarded-for", line) for line in lines]
    assert client_address("10.0.0.9", headers, proxies=proxies) == client


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_addresses_of_the_old_kind_are_limited_one_by_one(
    one: ipaddress.IPv4Address, other: ipaddress.IPv4Address
) -> None:
    assert (limited_network(str(one)) == limited_network(str(other))) == (one == other)
    assert limited_network(f"::ffff:{one}") == limited_network(str(one))


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_a_network_s_many_addresses_are_one(one: ipaddress.IPv6Address, host: int) -> None:
    if one.ipv4_mapped is None and one.packed[:8] != bytes(8):
        other = ipaddress.IPv6Address((int(one) >> 64 << 64) | host)
        assert limited_network(str(one)) == limited_network(str(other))


def test_what_is_no_address_is_its_own_neighbourhood() -> None:
    assert limited_network("") == ""
    assert limited_network("unix:/run/x") == "unix:/run/x"


@pytest.mark.parametrize("proxies", [0, 1])
def test_behind_a_proxy_clients_are_told_apart_only_if_it_is_said_to_be_there(
    put_up: Callable[..., Plant], proxies: int
) -> None:
    plant = put_up(proxies=proxies)

    def enrol(client: str) -> int:
        headers = {"X-Forwarded-For": f"198.51.100.7, {client}"}
        return plant.post("/device/enrol", b"{}", headers, client="127.0.0.1").status

    assert {enrol(f"192.0.2.{n}") for n in range(80)} == ({400} if proxies else {400, 429})
    assert {enrol("192.0.2.200") for _ in range(80)} == ({400, 429} if proxies else {429}), "one is still limited"
