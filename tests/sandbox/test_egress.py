"""The policy for connections: which hosts, which addresses, whatever way they are written."""

from __future__ import annotations

import ipaddress
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.errors import ConfigError, NetworkError
from reinforge.sandbox.addresses import canonical_host, reach_of, split_port
from reinforge.sandbox.egress import EgressPolicy, system_addresses

ADDRESSES_4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
ADDRESSES_6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address) | st.integers(0, 2**112).map(
    lambda low: ipaddress.IPv6Address((0x2000 << 112) + low)
)


@given(ADDRESSES_4 | ADDRESSES_6)
def test_no_special_address_passes_as_public(address):
    if address.is_private or address.is_multicast or address.is_link_local or address.is_unspecified:
        assert reach_of(address) != "public"
    if address.is_loopback:
        assert reach_of(address) == "private"


@given(ADDRESSES_4)
def test_an_ipv4_address_in_ipv6_clothes_is_what_it_is(address):
    for prefix in ("::ffff:", "64:ff9b::"):
        assert reach_of(ipaddress.ip_address(f"{prefix}{address}")) == reach_of(address)
    six_to_four = ipaddress.ip_address((0x2002 << 112) + (int(address) << 80))
    teredo = ipaddress.ip_address((0x20010000 << 96) + (int(address) ^ 0xFFFFFFFF))
    compatible = ipaddress.ip_address(int(address))
    assert {reach_of(six_to_four), reach_of(teredo)} == {"never"}
    assert reach_of(ipaddress.IPv6Address(int(compatible))) in ("never", "private")


def test_of_a_host_with_many_addresses_six_are_tried():
    policy = EgressPolicy(("a.example",), resolve=lambda host, port: [f"8.8.8.{n}" for n in range(20)])
    assert policy.look_up("a.example", 443).result(5) == [f"8.8.8.{n}" for n in range(6)]


METADATA = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"]
ODD = [
    "fe80::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("address", METADATA + ODD)
def test_metadata_services_and_odd_addresses_are_never_allowed(address):
    policy = EgressPolicy(("m.example",), allow_private_addresses=True, resolve=lambda host, port: [address])
    with pytest.raises(NetworkError, match="never allowed") as caught:
        policy.look_up("m.example", 80).result(5)
    assert caught.value.kind == "refused"


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.31.0.1", "100.64.0.1", "::1", "fd12::1"]
)
def test_private_addresses_need_their_setting(address):
    policy = EgressPolicy(("in.example",), section="judges", resolve=lambda host, port: [address])
    with pytest.raises(NetworkError) as caught:
        policy.look_up("in.example", 80).result(5)
    assert str(caught.value) == (
        f"in.example is at {address}: an address of this machine or of a network around it. "
        "Set judges.allow_private_addresses: true to allow such addresses."
    )
    allowed = EgressPolicy(("in.example",), allow_private_addresses=True, resolve=lambda host, port: [address])
    assert allowed.look_up("in.example", 80).result(5) == [address]


def test_of_mixed_addresses_only_the_good_ones_are_used():
    policy = EgressPolicy(
        ("a.example",), resolve=lambda host, port: ["127.0.0.1", "1.1.1.1", "fe80::1%eth0", "8.8.8.8"]
    )
    assert policy.look_up("a.example", 443).result(5) == ["1.1.1.1", "8.8.8.8"]


def test_a_name_without_an_address_says_so():
    def resolve(host, port):
        raise OSError("Name or service not known")

    for policy in (EgressPolicy(("a.example",), resolve=resolve), EgressPolicy(("a",), resolve=lambda host, port: [])):
        with pytest.raises(NetworkError, match="has no address") as caught:
            policy.look_up("a.example", 443).result(5)
        assert caught.value.kind == "name"


def test_an_address_in_place_of_a_name_is_asked_of_nobody():
    policy = EgressPolicy(("127.0.0.1:80",), allow_private_addresses=True, resolve=lambda host, port: pytest.fail(host))
    assert policy.look_up(policy.check("127.0.0.1", 80), 80).result(5) == ["127.0.0.1"]


def test_whoever_looks_up_waits_no_longer_than_they_want():
    late = threading.Event()
    policy = EgressPolicy(("a.example",), resolve=lambda host, port: ["1.1.1.1"] * late.wait(10))
    with pytest.raises(TimeoutError):
        policy.look_up("a.example", 443).result(0.05)
    late.set()


POLICY = EgressPolicy(
    ("api.example.org", "*.wide.example.org", "odd.example.org:8443", "10.0.0.1:80", "[::1]:8000", "bücher.example"),
    section="reward_fns.runtime",
)
ALLOWED = [
    ("api.example.org", 443, "api.example.org"),
    ("api.example.org", 80, "api.example.org"),
    ("API.EXAMPLE.ORG.", 443, "api.example.org"),
    ("ａpi.example。org", 443, "api.example.org"),
    ("a.wide.example.org", 443, "a.wide.example.org"),
    ("a.b.wide.example.org", 443, "a.b.wide.example.org"),
    ("odd.example.org", 8443, "odd.example.org"),
    ("10.0.0.1", 80, "10.0.0.1"),
    ("::ffff:10.0.0.1", 80, "10.0.0.1"),
    ("[0:0::0:1]", 8000, "::1"),
    ("xn--bcher-kva.example", 443, "xn--bcher-kva.example"),
    ("Bücher.example", 443, "xn--bcher-kva.example"),
]


@pytest.mark.parametrize(("host", "port", "name"), ALLOWED)
def test_a_listed_host_has_one_spelling(host, port, name):
    assert POLICY.check(host, port) == name


REFUSED = [
    ("evil.example", 443),
    ("example.org", 443),
    ("wide.example.org", 443),
    ("evilwide.example.org", 443),
    ("api.example.org.evil.example", 443),
    ("xapi.example.org", 443),
    ("api.example.org", 22),
    ("odd.example.org", 443),
    ("api.example.org@evil.example", 443),
    ("api.example.org:443@evil.example", 443),
    ("api.example.org\0.evil.example", 443),
    ("api.example.org/evil.example", 443),
    ("api.example.org#", 443),
    ("api.example.org..", 443),
    ("аpi.example.org", 443),  # its first letter is Cyrillic
    ("", 443),
    (".", 443),
    ("a" * 64 + ".wide.example.org", 443),
    ("a." * 200 + "wide.example.org", 443),
    ("10.0.0.2", 80),
    ("167772161", 80),
    ("0x0a000001", 80),
    ("012.0.0.1", 80),
    ("10.1", 80),
    ("10.0.0.1.", 80),
    ("::1", 80),
    ("fe80::1%lo", 80),
    ("localhost", 80),
    ("127.0.0.1", 80),
]


@pytest.mark.parametrize(("host", "port"), REFUSED)
def test_whatever_is_not_listed_is_refused(host, port):
    with pytest.raises(NetworkError) as caught:
        POLICY.check(host, port)
    assert caught.value.kind == "refused"


def test_a_refusal_says_what_to_do():
    with pytest.raises(NetworkError) as caught:
        EgressPolicy(("a.example",), section="reward_fns.runtime").check("b.example", 8000)
    expected = "b.example is none of the hosts in reward_fns.runtime.allowed_hosts (a.example). "
    assert str(caught.value) == expected + 'Add "b.example:8000" there to allow it.'
    with pytest.raises(NetworkError, match="is in allowed_hosts with port 80 and 443, not 22") as caught:
        EgressPolicy(("a.example",)).check("a.example", 22)
    assert caught.value.hint == 'Add "a.example:22" there to allow it.'
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == (str(caught.value), "refused")


@pytest.mark.parametrize(
    "entry",
    ["https://a.example", "a.example/path", "*", "*.org", "*.*.org", "a.*.org", "*.10.0.0.1", "a:0", "a:x", "", "1.2"],
)
def test_an_entry_that_is_no_host_is_a_config_error(entry):
    with pytest.raises(ConfigError, match=r"^reward_fns\.runtime\.allowed_hosts: "):
        EgressPolicy((entry,), section="reward_fns.runtime")


@given(st.text(max_size=40))
def test_a_host_has_one_spelling_whatever_it_is(text):
    try:
        name = canonical_host(text)
    except ValueError:
        return
    assert canonical_host(name) == name
    assert name.isascii()
    assert not set(name) & set("@/#?%\\ []\0\r\n")


@given(st.text(max_size=40))
def test_only_numbers_are_ports(text):
    try:
        host, port = split_port(text)
    except ValueError:
        return
    assert host == canonical_host(host)
    assert port is None or 1 <= port <= 65535


def test_the_resolver_of_this_machine_is_asked():
    assert system_addresses("127.0.0.1", 80) == ["127.0.0.1"]
    assert set(system_addresses("localhost", 80)) <= {"127.0.0.1", "::1"}
