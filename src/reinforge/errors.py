"""Every error a user can meet. Each says what was found, the rule, and what to do next, and has an exit code.

    ReinforgeError            1
    |- ConfigError            2   a setting is wrong or unknown
    |- UsageError             2   a command was called wrongly, a run or file it names does not exist
    |- DataError              3   a data set cannot be used as it is
    |- RewardError            3   a reward function cannot be loaded or called
    |- SetupError             4   this machine lacks something: a package, a program, memory, disk
    |- ModelError             4   a model or adapter cannot be loaded
    |- NetworkError           4   a server cannot be reached, or may not be
    |- CheckpointError        1   a checkpoint is damaged or does not belong to this run
    |- StoppedByGuard         5   a guard (failing rewards, a judge) or a request ended the run; it can be resumed
    |- Interrupted        130/143 Ctrl-C or SIGTERM, after a checkpoint

Exit codes: 0 done, 1 run failed, 2 usage or config, 3 data or reward function unfit, 4 environment or model unfit,
5 stopped by a guard or by a request in control/stop (resumable), 130/143 interrupted after a checkpoint (resumable).
"""

from __future__ import annotations


class ReinforgeError(Exception):
    """Base of all errors shown to users without a traceback. Anything else that surfaces is a bug.

    >>> str(ConfigError("num_generations = 1, but a group needs at least 2.", hint="Set num_generations = 4 or more."))
    'num_generations = 1, but a group needs at least 2. Set num_generations = 4 or more.'
    """

    code = "run_failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        if message.endswith("..") and not message.endswith("..."):  # what is quoted has a full stop of its own
            message = message[:-1]
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        """Keep message and hint through pickling (worker processes, actors)."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[ReinforgeError], message: str, hint: str) -> ReinforgeError:
    return kind(message, hint=hint)


class ConfigError(ReinforgeError):
    """A setting is wrong or unknown."""

    code = "config"
    exit_code = 2


class UsageError(ReinforgeError):
    """A command was called wrongly, or names a run or file that does not exist."""

    code = "usage"
    exit_code = 2


class DataError(ReinforgeError):
    """A data set cannot be used as it is. The message names file, line and column."""

    code = "data"
    exit_code = 3


class RewardError(ReinforgeError):
    """A reward function cannot be loaded or called. Faults of single calls are scores, not this error."""

    code = "reward"
    exit_code = 3


class SetupError(ReinforgeError):
    """This machine lacks something: a package, a program, memory, disk space."""

    code = "setup"
    exit_code = 4


class ModelError(ReinforgeError):
    """A model or adapter cannot be loaded."""

    code = "model"
    exit_code = 4


class NetworkError(ReinforgeError):
    """A server cannot be reached, or the policy for connections (sandbox/egress.py) does not let us. `kind` is one of
    refused (by the policy), name (it does not resolve), connect, tls, timeout, too_large, broken (no HTTP)."""

    code = "network"
    exit_code = 4

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_network, (self.message, self.kind, self.hint))


def _rebuild_network(message: str, kind: str, hint: str) -> NetworkError:
    return NetworkError(message, kind=kind, hint=hint)


class CheckpointError(ReinforgeError):
    """A checkpoint is damaged or does not belong to this run."""

    code = "checkpoint"
    exit_code = 1


class StoppedByGuard(ReinforgeError):
    """Too many reward calls failed (`reward_fns.max_error_rate`, or a function's `on_error: fail`), a judge stays down,
    turns us away or has used its budget (`reward_fns.judge`), or a stop request (the file `control/stop` in the run's
    folder, with a reason in it) ended the run, after a checkpoint. `reinforge runs resume` goes on."""

    code = "stopped"
    exit_code = 5


class Interrupted(ReinforgeError):
    """Ctrl-C (130) or SIGTERM (143): the step under way was finished, or the held-out evaluation under way broken off
    (a resume makes it anew), and a checkpoint written. A second Ctrl-C stops at once; `reinforge runs resume` goes on
    from the last checkpoint."""

    code = "interrupted"
    exit_code = 130

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 130) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_interrupted, (self.message, self.hint, self.exit_code))


def _rebuild_interrupted(message: str, hint: str, exit_code: int) -> Interrupted:
    return Interrupted(message, hint=hint, exit_code=exit_code)
