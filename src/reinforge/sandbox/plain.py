"""The last tier: an ordinary process. Code runs in it only with the user's consent, or when we shipped it.

What this tier does: user code runs in its own process with an empty environment, an empty folder, no descriptor of
ours, limits on memory, file size and core dumps, and a deadline after which its whole process group is killed.

What this tier does NOT stop: code in a worker can read and write every file this user can, open network connections
(hosts that the user allowed are named to it by its environment, nothing more), see other processes and signal them,
start processes that leave the process group (`setsid`) and outlive the worker, and start as many as the user's limit
allows. It can change anything inside its own process, its own result included; so each function has processes of its
own, and no function can change another's result. Run only code you trust here.

When the trainer itself is killed, idle workers end at once with their group; a busy one ends 5 s after its deadline,
but processes it has started, and its empty folder, stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reinforge.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Plain:
    """Starts workers as they are."""

    name: str = "plain"
    has_namespace: bool = False
    network: Literal["shared"] = "shared"
    uses_pipe: bool = False
    uses_cgroup: bool = False

    def user(self) -> int | None:
        return None

    def command(self, runner: Sequence[str], folder: str, limits: Limits, user: int | None, pipe: int) -> list[str]:
        return list(runner)
