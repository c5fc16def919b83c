"""What a worker may reach beyond its sandbox: hosts, by a proxy of its own, and named secrets. By default nothing."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reinforge.errors import SetupError
from reinforge.sandbox.egress import EgressPolicy, system_addresses
from reinforge.sandbox.launch import PROXY_PORT, Tier
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.named_secrets import read_secrets
from reinforge.sandbox.proxy import USER, Connection, WorkerProxy

MAX_BYTES = 64 << 20
"""Of one connection in each direction."""
MAX_CONNECTION_S = 900.0
START_S = 30.0
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

HOSTS_TEXT = {
    "own": "hosts that a config allows: reached through a proxy that holds each function to its own",
    "shared": "hosts that a config allows: named to functions by their environment, which holds them to nothing",
    "": "hosts that a config allows: none; the tier in use opens the network to every address or to none",
}
"""What granting hosts means in a tier, by its `network`."""

OnConnection = Callable[[Connection], None]


def ignore(connection: Connection) -> None:
    """For those who want to know nothing of connections."""


@dataclass(frozen=True, slots=True)
class Access:
    """Of the workers of one function."""

    policy: EgressPolicy | None = None
    """None: no network."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    on_connection: OnConnection = ignore
    """Told of every connection that was asked for, in a thread of the proxy."""


NO_ACCESS = Access()


def access_for(limits: Limits, tier: Tier, on_connection: OnConnection = ignore) -> Access:
    """What `limits` grant in a tier. ConfigError for what is no host or name, SetupError where a secret is missing or
    the tier cannot hold a function to its hosts."""
    found = read_secrets(limits.secrets, f"{limits.secrets_section}.secrets")
    if not limits.allowed_hosts:
        return Access(None, found, on_connection)
    policy = EgressPolicy(
        allowed_hosts=limits.allowed_hosts,
        allow_private_addresses=limits.allow_private_addresses,
        max_request_bytes=MAX_BYTES,
        max_response_bytes=MAX_BYTES,
        timeout_s=MAX_CONNECTION_S,
        section=limits.section,
        resolve=system_addresses,
    )
    if not tier.network:
        raise SetupError(
            f"{limits.section}.allowed_hosts is set, but the {tier.name} tier of the sandbox cannot hold a function to "
            "these hosts: it opens the network to every address or to none.",
            hint="Install bubblewrap (apt install bubblewrap, dnf install bubblewrap), or allow no hosts.",
        )
    return Access(policy, found, on_connection)


@dataclass(slots=True)
class Way:
    """A worker's way to the network, while its process is started: how it is told, and the proxy once there is one."""

    url: str
    listener: socket.socket | None
    credential: str


def open_way(access: Access, tier: Tier, undo: contextlib.ExitStack) -> Way | None:
    """Where the worker has a network of its own, it will hand out a listener in there; else one of this machine, which
    asks for a password because all its users can reach it. None for a worker without hosts."""
    if access.policy is None:
        return None
    if tier.network == "own":
        return Way(f"http://127.0.0.1:{PROXY_PORT}", None, "")
    listener = socket.create_server(("127.0.0.1", 0))
    undo.callback(listener.close)
    credential = secrets.token_urlsafe(16)
    return Way(f"http://{USER}:{credential}@127.0.0.1:{listener.getsockname()[1]}", listener, credential)


def start_proxy(access: Access, way: Way | None, channel: socket.socket) -> WorkerProxy | None:
    """The proxy of a worker that was started; None without a way, or when the worker died on its own."""
    if way is None or access.policy is None:
        return None
    listener = way.listener or _handed_out(channel)
    return None if listener is None else WorkerProxy(listener, access.policy, access.on_connection, way.credential)


def _handed_out(channel: socket.socket) -> socket.socket | None:
    """The listener that confine.py sends before the worker begins; None when it died before."""
    channel.settimeout(START_S)
    try:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except OSError:
        return None
    finally:
        channel.settimeout(None)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def environment(access: Access, way: Way | None) -> dict[str, str]:
    """Variables for a worker, beside those all workers have."""
    proxies = {}
    if way is not None:
        proxies = {spelled: way.url for name in PROXY_VARIABLES for spelled in (name, name.lower())}
    return {**proxies, **access.secrets}
