"""Host names and addresses: one spelling each, and which addresses lie inside somebody's network. Pure; asks nobody."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Reach = Literal["public", "private", "never"]

MAX_HOST = 253
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")

_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",  # between a provider and its customers, RFC 6598
            "198.18.0.0/15",  # tests of network devices, and what some VPN programs answer for every name
            "::1/128",
            "fc00::/7",
        ),
    )
)
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # Linux takes it for this machine
            "169.254.0.0/16",  # link-local: the metadata service of most clouds
            "100.100.100.200/32",  # metadata service of Alibaba Cloud
            "168.63.129.16/32",  # of Azure
            "fd00:ec2::254/128",  # of AWS
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "2001::/23",  # Teredo, ORCHID, benchmarks
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",
        ),
    )
)
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
"""The only IPv6 addresses handed out so far: iana.org/assignments/ipv6-address-space."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def reach_of(address: Address) -> Reach:
    """`public`: on the internet; `private`: this machine or a network around it; `never`: no server lives there that a
    program should talk to (metadata services, link-local, multicast, reserved, documentation).

    From the registries of special-purpose addresses, iana.org/assignments/iana-ipv4-special-registry and -ipv6-. An
    IPv4 address in IPv6 clothes (mapped, NAT64) counts as what it is.

    >>> [reach_of(ipaddress.ip_address(text)) for text in ("1.1.1.1", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1")]
    ['public', 'private', 'private', 'private']
    >>> [reach_of(ipaddress.ip_address(text)) for text in ("169.254.169.254", "fe80::1", "2002:a00:1::", "ff02::1")]
    ['never', 'never', 'never', 'never']
    """
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped
        if inside is None and address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return reach_of(inside)
    if any(address in network for network in _NEVER):
        return "never"
    if any(address in network for network in _PRIVATE):
        return "private"
    return "public" if address.version == 4 or address in _PUBLIC_6 else "never"


def canonical_host(text: str) -> str:
    """One spelling of a host: lower-case ASCII (IDNA 2003) without a trailing dot; an address as `ipaddress` writes it.

    ValueError, saying why, for what is none: also for the decimal, octal, hexadecimal and short spellings of addresses
    that system calls would take.

    >>> canonical_host("API.Example.org."), canonical_host("bücher.example"), canonical_host("[0:0::1]")
    ('api.example.org', 'xn--bcher-kva.example', '::1')
    >>> canonical_host("0x7f.1")
    Traceback (most recent call last):
        ...
    ValueError: 0x7f.1 is a number in place of a name: write an address as 127.0.0.1
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        if getattr(address, "scope_id", None):
            raise ValueError(f"{text!r} names a network interface")
        return str(getattr(address, "ipv4_mapped", None) or address)
    return _canonical_name(text)


def _canonical_name(text: str) -> str:
    if len(text) > MAX_HOST:
        raise ValueError(f"a host name has at most {MAX_HOST} characters, this has {len(text):,}")
    try:
        name = text.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise ValueError(f"{text!r} is no host name") from None
    labels = name.split(".")
    if len(name) > MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is no host name")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{name} is a number in place of a name: write an address as 127.0.0.1")
    return name


def split_port(text: str) -> tuple[str, int | None]:
    """`host`, `host:port`, `[::1]:port` or a bare IPv6 address -> (host in one spelling, port); ValueError for others.

    >>> split_port("Example.org:8443"), split_port("[::1]:80"), split_port("::1"), split_port("example.org")
    (('example.org', 8443), ('::1', 80), ('::1', None), ('example.org', None))
    """
    if set("/@?#\\") & set(text):
        raise ValueError(f"{text[:MAX_HOST]!r} is no host name")
    host, colon, port = text.rpartition(":")
    if not colon or host.endswith(":") or (":" in host and not host.endswith("]")):
        return canonical_host(text), None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{text[:MAX_HOST]!r} has no port between 1 and 65535")
    return canonical_host(host), int(port)


def with_port(host: str, port: int, unless: int | None = None) -> str:
    """A host in one spelling and its port, as URLs and messages have them.

    >>> with_port("::1", 80), with_port("a.example", 443, unless=443)
    ('[::1]:80', 'a.example')
    """
    written = f"[{host}]" if ":" in host else host
    return written if port == unless else f"{written}:{port}"
