"""Named places where a test can make the process die, as `kill -9` would.

    REINFORGE_FAILPOINT=checkpoint:after_file=3 reinforge train ...

kills the process the third time `failpoint("checkpoint:after_file")` is passed. Without the variable a failpoint does
nothing. The kill tests walk through FAILPOINTS; whoever adds a call adds its name there.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "REINFORGE_FAILPOINT"

FAILPOINTS = (
    "rows:before_commit",
    "rows:after_commit",
    "rewind:before_commit",
    "rewind:after_commit",
    "checkpoint:after_write",
    "checkpoint:after_file",
    "checkpoint:before_manifest",
    "checkpoint:after_manifest",
    "checkpoint:before_rename",
    "checkpoint:after_rename",
    "checkpoint:during_prune",
    "checkpoint:after_prune",
)
"""Those of the run store, in the order a step passes them."""

UPDATE_FAILPOINTS = ("update:after_source", "update:before_commit", "update:after_commit", "update:after_remove")
"""Those of an update of the reward functions, in its order."""

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here (SIGKILL: no cleanup, no flush) if the environment says so."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _, count = wanted.partition("=")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(count or "1"):
        os.kill(os.getpid(), signal.SIGKILL)
