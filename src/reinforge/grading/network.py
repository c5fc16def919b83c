"""What the reward functions of a run did with the network: written down and counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from reinforge.run_store.network_log import NetworkLog
from reinforge.sandbox.access import OnConnection
from reinforge.sandbox.proxy import Connection

MAX_TOLD = 50
"""Different failures that are told apart between two looks."""
Failure = tuple[str, str, str, str]
"""Function version, host, verdict, reason."""


class Network:
    """Hears of every connection of a run's workers, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._log: NetworkLog | None = None
        self._fault = ""
        self._figures: Counter[str] = Counter()
        self._failures: Counter[Failure] = Counter()

    def keep_in(self, folder: Path) -> None:
        """Write connections down in this folder from now on."""
        with self._lock:
            self._log = NetworkLog(folder)

    def hearing(self, version: str) -> OnConnection:
        """For the workers of one function version."""

        def hear(connection: Connection) -> None:
            with self._lock:
                self._count(version, connection)
                if self._log is not None and not self._fault:
                    try:
                        self._log.write({"at": round(time.time(), 3), "function": version, **asdict(connection)})
                    except OSError as error:  # told with the next failures; scoring goes on
                        self._fault = str(error)

        return hear

    def _count(self, version: str, connection: Connection) -> None:
        self._figures["connections"] += 1
        self._figures["sent_bytes"] += connection.sent_bytes
        self._figures["received_bytes"] += connection.received_bytes
        if connection.verdict != "allowed":
            self._figures[connection.verdict] += 1
            failure = (version, connection.host, connection.verdict, connection.reason)
            if failure not in self._failures and len(self._failures) >= MAX_TOLD:
                failure = (version, "further hosts", connection.verdict, "see network.jsonl")
            self._failures[failure] += 1

    def take_figures(self) -> dict[str, float]:
        """`network/...`: what was counted since the last call; nothing without connections."""
        with self._lock:
            figures, self._figures = self._figures, Counter()
        return {f"network/{name}": float(value) for name, value in figures.items()}

    def take_failures(self) -> dict[Failure, int]:
        """How often connections were not simply made, by cause, since the last call; a log that cannot be written is
        one of them, told once."""
        with self._lock:
            failures, self._failures = dict(self._failures), Counter()
            fault, self._fault = self._fault, ""
            if fault:
                self._log = None
        return failures | ({("", "", "unwritten", fault): 1} if fault else {})
