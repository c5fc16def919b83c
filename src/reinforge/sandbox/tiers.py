"""Which tier of the sandbox this machine offers: found by starting a worker in it and trying to get out.

| tier | module | isolation |
|---|---|---|
| bubblewrap | bubblewrap.py | namespaces, read-only system, seccomp |
| landlock | landlock.py | Landlock and seccomp, no privileges needed |
| plain | plain.py | none: only with consent, or for what we shipped |

The best one that works is used and named in the run record, with the reasons why better ones are missing. The
environment variable REINFORGE_SANDBOX=bubblewrap|landlock|plain asks for one; asking for plain is consent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import reinforge
from reinforge.errors import SetupError
from reinforge.sandbox.access import HOSTS_TEXT
from reinforge.sandbox.bubblewrap import find_bubblewrap
from reinforge.sandbox.cgroup import make_cgroup
from reinforge.sandbox.consent import stored_consent
from reinforge.sandbox.landlock import SIGNALS_SCOPED_FROM, Landlock, find_landlock
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.process import SourceFault, WorkerGone, WorkerProcess, WorkerUnavailable

VARIABLE = "REINFORGE_SANDBOX"
NAMES = ("bubblewrap", "landlock", "plain")
PROBE_S = 20.0

PROBE = """
import os, socket

def attempts(secret, port, process):
    def file_read(): open(secret).read()
    def file_write(): open(secret, "a").close()
    def signals(): os.kill(process, 0)
    def tcp(): socket.create_connection(("127.0.0.1", port), 1).close()
    def udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
    def worked(action):
        try:
            action()
        except OSError:
            return False
        return True
    with open("own", "w") as file:
        file.write("in the worker's own folder")
    return [action.__name__ for action in (file_read, file_write, signals, tcp, udp) if worked(action)]
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """The tier in use and why it is not a better one."""

    tier: Tier
    reasons: tuple[str, ...]
    asked_for: bool = False
    """By REINFORGE_SANDBOX."""


_FINDERS: dict[str, Callable[[], Tier | str]] = {
    "bubblewrap": find_bubblewrap,
    "landlock": find_landlock,
    "plain": Plain,
}
_lock = threading.Lock()


def choose() -> Choice:
    """The tier for user code here. Probed once per process, in about a quarter of a second."""
    with _lock:  # one probe, however many threads ask
        return _choose(os.environ.get(VARIABLE, ""))


def about() -> dict[str, Any]:
    """For the run record: {"tier", "reasons"}."""
    choice = choose()
    reasons = list(choice.reasons)
    if choice.tier.name == "plain":
        reasons += [_consent_reason(choice) or "only functions shipped with Reinforge run without consent"]
    return {"tier": choice.tier.name, "reasons": reasons}


ISOLATION = {
    "bubblewrap": "namespaces, read-only system, seccomp",
    "landlock": "Landlock, seccomp",
    "plain": "none",
}


def survey() -> dict[str, Any]:
    """For people: every tier with what is `missing` here, the one in use, what that one lacks, the stored consent."""
    choice, consent = choose(), stored_consent()
    missing = {name: found if isinstance(found := working(name), str) else "" for name in NAMES}
    return {
        "used": choice.tier.name,
        "asked_for": choice.asked_for,
        "tiers": [{"tier": name, "isolation": ISOLATION[name], "missing": missing[name]} for name in NAMES],
        "remarks": _remarks(choice.tier),
        "hosts": HOSTS_TEXT[choice.tier.network],
        "consent": consent and {"given": consent.given, "path": str(consent.path)},
    }


def tier_for(source: str, limits: Limits) -> Tier:
    """The tier in which a source may run; SetupError when it is plain and nobody consented to that."""
    choice = choose()
    if choice.tier.name != "plain" or limits.unsafe_no_sandbox or _consent_reason(choice):
        return choice.tier
    if is_shipped(source) and not limits.packages:  # a package may run code of its own
        return choice.tier
    raise SetupError(
        "reward functions cannot be isolated on this machine: " + "; ".join(choice.reasons) + ".",
        hint="Install bubblewrap (apt install bubblewrap, dnf install bubblewrap). To run code you trust without "
        "isolation: --unsafe-no-sandbox, or reward_fns.runtime.unsafe_no_sandbox: true in the config, or once for this "
        "machine: reinforge sandbox consent.",
    )


def is_shipped(source: str) -> bool:
    """Whether a source is, letter by letter, a file of one of our recipes.

    >>> is_shipped("import os")
    False
    """
    return source in _shipped()


@cache
def _shipped() -> frozenset[str]:
    recipes = Path(reinforge.__file__).parent / "recipes"
    return frozenset(path.read_text(encoding="utf-8") for path in recipes.rglob("*.py"))


def _consent_reason(choice: Choice) -> str:
    if choice.asked_for:
        return f"asked for by {VARIABLE}=plain"
    consent = stored_consent()
    return f"consent given {consent.given} in {consent.path}" if consent else ""


@cache
def _choose(asked: str) -> Choice:
    if asked and asked not in NAMES:
        raise SetupError(f"{VARIABLE}={asked} names no tier of the sandbox.", hint=f"Use one of {', '.join(NAMES)}.")
    reasons: list[str] = []
    for name in (asked,) if asked else NAMES:
        found = working(name)
        if not isinstance(found, str):
            return Choice(found, (*reasons, *_remarks(found)), bool(asked))
        reasons.append(f"{name}: {found}")
    raise SetupError(f"{VARIABLE}={asked}, but {'; '.join(reasons)}.", hint=f"Unset {VARIABLE}.")


@cache
def working(name: str) -> Tier | str:
    """A tier after its probe, or why it does not work here."""
    found = _FINDERS[name]()
    if isinstance(found, str) or name == "plain":
        return found
    return probe(found) or found


def probe(tier: Tier) -> str:
    """Start a worker and let it try to get out; what went wrong, or "" when it was held."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reinforge-probe-")))
        secret = folder / "secret"
        secret.write_text("secret")
        folder.chmod(0o755)
        secret.chmod(0o666)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        try:
            process = WorkerProcess(Limits(load_s=PROBE_S), tier)
        except WorkerUnavailable as error:
            return str(error)
        stack.callback(process.kill)
        arguments = {"secret": str(secret), "port": listener.getsockname()[1], "process": os.getpid()}
        try:
            process.load(PROBE, "probe.py")
            process.prepare("attempts", arguments, PROBE_S)
            result = process.call({})
        except SourceFault as fault:
            return fault.text
        except (WorkerGone, TimeoutError):
            return "a worker in it gave no answer"
    if result.kind:
        return f"a worker in it failed: {result.message}"
    if result.value != []:
        return "it does not hold here: " + ", ".join(map(str, cast(list[object], result.value)))
    return ""


def _remarks(tier: Tier) -> list[str]:
    """What a working tier lacks on this machine."""
    remarks = []
    if tier.uses_cgroup:
        cgroup = make_cgroup(Limits())
        if cgroup is None:
            remarks.append("cgroup: none can be made here, so memory is limited per process")
        else:
            cgroup.remove()
    if isinstance(tier, Landlock) and tier.version < SIGNALS_SCOPED_FROM:
        remarks.append("landlock: before Linux 6.12 user code cannot signal its own children")
    return remarks


__all__ = ["Choice", "about", "choose", "is_shipped", "probe", "survey", "tier_for", "working"]
