"""Who may be talked to: the one policy for every connection that is made for a reward function, a judge or a webhook.

A host is allowed by name and port, looked up once, and connected to at the very address that was looked up and judged:
a name that changes its mind (DNS rebinding) finds nobody asking again. Addresses inside this machine or the networks
around it need `allow_private_addresses`; metadata services, link-local and reserved addresses are never allowed.

    fetch.py   requests under a policy, for our own code
    proxy.py   the same for code in a sandbox worker

Redirects are never followed by us; whoever follows one asks the policy again. What a policy cannot see is which of its
sites a server shows to an encrypted request: a host on a shared network of servers opens all of that network.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache

from reinforge.errors import ConfigError, NetworkError
from reinforge.sandbox.addresses import Address, canonical_host, reach_of, split_port, with_port

USUAL_PORTS = (80, 443)
MAX_ADDRESSES = 6
"""Tried of one host."""

Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) -> its addresses as text, the best first; OSError when it has none."""


def system_addresses(host: str, port: int) -> list[str]:
    """What this machine's own resolver says."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Hosts that may be connected to, and how much and how long.

    Example:
        >>> policy = EgressPolicy(("api.example.org", "*.example.com:8443"))
        >>> policy.check("API.example.org.", 443), policy.check("a.b.example.com", 8443)
        ('api.example.org', 'a.b.example.com')
        >>> policy.check("example.com", 8443)
        Traceback (most recent call last):
            ...
        reinforge.errors.NetworkError: example.com is none of the hosts in allowed_hosts ...
    """

    allowed_hosts: tuple[str, ...] = ()
    """`api.example.org` (ports 80 and 443), `api.example.org:8443`, `*.example.org` (whatever stands before the dot,
    not example.org itself), `127.0.0.1:8000`, `[::1]:8000`."""
    allow_private_addresses: bool = False
    """Also those of this machine and of the networks around it."""
    max_request_bytes: int = 16 << 20
    """Most that is sent: of one request's body, or through one connection of a worker."""
    max_response_bytes: int = 16 << 20
    """Most that is received, likewise."""
    timeout_s: float = 120.0
    """Longest a request may take as a whole, or a connection of a worker may live."""
    section: str = ""
    """Where a user sets these, for the messages: `reward_fns.runtime`."""
    resolve: Resolve = system_addresses

    def __post_init__(self) -> None:
        _rules(self.allowed_hosts, self._setting("allowed_hosts"))

    def check(self, host: str, port: int) -> str:
        """The host in its one spelling, if it may be connected to by name and port; NetworkError (refused) if not."""
        try:
            name = canonical_host(host)
        except ValueError as error:
            raise NetworkError(f"{error}.", kind="refused") from None
        setting = self._setting("allowed_hosts")
        of_host = [rule for rule in _rules(self.allowed_hosts, setting) if rule.names(name)]
        if any(port in rule.ports for rule in of_host):
            return name
        if of_host:
            ports = " and ".join(str(port) for port in sorted({port for rule in of_host for port in rule.ports}))
            message = f"{name} is in {setting} with port {ports}, not {port}."
            raise NetworkError(message, kind="refused", hint=f'Add "{with_port(name, port)}" there to allow it.')
        known = ", ".join(self.allowed_hosts) or "there are none"
        hint = f'Add "{with_port(name, port, unless=port if port in USUAL_PORTS else None)}" there to allow it.'
        raise NetworkError(f"{name} is none of the hosts in {setting} ({known}).", kind="refused", hint=hint)

    def look_up(self, host: str, port: int) -> Future[list[str]]:
        """The addresses of a host that `check` let through, those that may be connected to; NetworkError without any.

        A thread of its own asks: the resolver of the system may take its time, and cannot be told how much."""
        future: Future[list[str]] = Future()
        future.set_running_or_notify_cancel()

        def ask() -> None:
            try:
                future.set_result(self._addresses(host, port))
            except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits)
                future.set_exception(error)

        threading.Thread(target=ask, name="look-up", daemon=True).start()
        return future

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = [ipaddress.ip_address(host)]
        except ValueError:
            addresses = self._resolved(host, port)
        good = [str(address) for address in addresses if self._may_be(address)]
        if good:
            return good[:MAX_ADDRESSES]
        first = addresses[0]
        where = f"{host} is at {first}" if str(first) != host else str(first)
        if reach_of(first) == "never":
            raise NetworkError(f"{where}: no server of use to you lives there; never allowed.", kind="refused")
        setting = self._setting("allow_private_addresses")
        message = f"{where}: an address of this machine or of a network around it."
        raise NetworkError(message, kind="refused", hint=f"Set {setting}: true to allow such addresses.")

    def _resolved(self, host: str, port: int) -> list[Address]:
        try:
            addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in self.resolve(host, port)]
        except OSError as error:
            raise NetworkError(f"{host} has no address: {error}.", kind="name", hint="Check the name.") from None
        if not addresses:
            raise NetworkError(f"{host} has no address.", kind="name", hint="Check the name.")
        return addresses

    def _may_be(self, address: Address) -> bool:
        reach = reach_of(address)
        return reach == "public" or (reach == "private" and self.allow_private_addresses)

    def _setting(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of `allowed_hosts`."""

    host: str
    any_below: bool
    ports: tuple[int, ...]

    def names(self, host: str) -> bool:
        return host.endswith(f".{self.host}") if self.any_below else host == self.host


@cache
def _rules(allowed_hosts: tuple[str, ...], setting: str) -> tuple[_Rule, ...]:
    """ConfigError for an entry that is no host."""
    return tuple(_rule(entry, setting) for entry in allowed_hosts)


def _rule(entry: str, setting: str) -> _Rule:
    any_below = entry.startswith("*.")
    try:
        host, port = split_port(entry.removeprefix("*."))
    except ValueError as error:
        raise ConfigError(
            f"{setting}: {error}.",
            hint="Write api.example.org, api.example.org:8443 or *.example.org: no URL.",
        ) from None
    if any_below and ("." not in host or ":" in host or host[-1].isdigit()):
        raise ConfigError(f"{setting}: {entry} is too wide.", hint="Name at least two parts: *.example.org.")
    return _Rule(host, any_below, USUAL_PORTS if port is None else (port,))
