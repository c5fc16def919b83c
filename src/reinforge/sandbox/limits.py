"""What one worker may use. The figures are those of OpenAI's Python grader where it names any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig

RUNTIME = "reward_fns.runtime"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker process may use; `load_s` and the bytes bound what it can make us wait for and hold."""

    max_memory_bytes: int = 2 << 30
    """Address space of each process, and memory of all processes of a worker together where a cgroup is writable.
    Generous: NumPy alone reserves hundreds of megabytes."""
    max_file_bytes: int = 64 << 20
    """Largest file it can write."""
    max_disk_bytes: int = 256 << 20
    """All files together, where the tier gives the worker a file system of its own."""
    max_processes: int = 64
    """Processes and threads of one worker together."""
    max_cpus: int = 2
    """CPUs that a worker's processes are spread over."""
    max_source_bytes: int = 256 << 10
    """Longest source."""
    max_print_bytes: int = 20_000
    """Kept of what one call prints."""
    max_result_bytes: int = 1_000_000
    """Largest JSON text one call may return."""
    load_s: float = 60.0
    """For running the module body: imports of heavy packages take their time."""
    fresh_process: bool = False
    """Each call runs in a fork of the process that loaded the source, which itself never runs a call."""
    packages: tuple[str, ...] = ()
    """`name==version` of the environment its code runs in (environments.py); (): the Python that runs us."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts it may connect to through a proxy (egress.py); (): no network."""
    allow_private_addresses: bool = False
    """Also those of this machine and of the networks around it."""
    secrets: tuple[str, ...] = ()
    """Names of the environment variables it gets beside those that all workers have."""
    section: str = RUNTIME
    """Where a user sets the hosts, for messages."""
    secrets_section: str = RUNTIME
    settings: tuple[tuple[str, RewardFunctionSettings], ...] = ()
    """Display name -> what one function has instead (`of`)."""
    readable: tuple[str, ...] = ()
    """Further files and folders it may read, for instance those of a model."""
    unsafe_no_sandbox: bool = False
    """The user's consent to run code without isolation where this machine offers none."""

    @classmethod
    def from_config(
        cls, runtime: RewardFunctionsRuntimeConfig, settings: Mapping[str, RewardFunctionSettings] | None = None
    ) -> Limits:
        """What a config sets, the rest as above. Its packages are none yet: environments.py finds their versions."""
        return cls(
            max_print_bytes=runtime.max_print_bytes,
            max_memory_bytes=int(runtime.max_memory_gb * 2**30),
            max_cpus=runtime.max_cpus,
            max_processes=runtime.max_processes,
            fresh_process=runtime.fresh_process,
            unsafe_no_sandbox=runtime.unsafe_no_sandbox,
            allowed_hosts=runtime.allowed_hosts,
            allow_private_addresses=runtime.allow_private_addresses,
            secrets=runtime.secrets,
            settings=tuple((settings or {}).items()),
        )

    def of(self, name: str) -> Limits:
        """Those of one function.

        >>> own = RewardFunctionSettings(secrets=("API_KEY",))
        >>> limits = Limits(allowed_hosts=("a.example",), settings=(("judge", own),))
        >>> limits.of("judge").secrets, limits.of("judge").allowed_hosts, limits.of("brief").secrets
        (('API_KEY',), ('a.example',), ())
        """
        limits, own = replace(self, settings=()), dict(self.settings).get(name)
        if own is None:
            return limits
        section = f"reward_fns.settings.{name}"
        if own.allowed_hosts is not None:
            limits = replace(limits, allowed_hosts=own.allowed_hosts, section=section)
        if own.allow_private_addresses is not None:
            limits = replace(limits, allow_private_addresses=own.allow_private_addresses)
        if own.secrets is not None:
            limits = replace(limits, secrets=own.secrets, secrets_section=section)
        return limits

    def closed(self) -> Limits:
        """The same without network, secrets and packages: for code that the user's settings do not mean, ours or a
        completion's."""
        return replace(self, allowed_hosts=(), allow_private_addresses=False, secrets=(), packages=(), settings=())


__all__ = ["Limits"]
