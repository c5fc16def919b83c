"""Reinforge's own loop on the Countdown demo, step by step. Started by time_to_target.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from countdown import Job, build, save_adapter
from protocol import Channel, StepClock
from reinforge_worker import TakeTurns, train

from reinforge.cluster.local import LocalRun


class TakeTurnsAndSave(TakeTurns):
    """Leaves the adapter where it is to be judged, after the step's time was taken."""

    def __init__(self, channel: Channel, job: Job, built: LocalRun) -> None:
        super().__init__(channel, StepClock(), built.task.config.train_steps)
        self.job, self.built = job, built

    def more(self, step: int) -> dict[str, Any]:
        path = self.job.adapter_after("reinforge", step)
        if path is None:
            return {}
        save_adapter(self.built.policy.adapter(step).weights, path)
        return {"adapter": str(path)}


def main() -> None:
    channel = Channel()
    job = Job.read(Path(sys.argv[1]))
    built = build(job.training_config())
    train(built, TakeTurnsAndSave(channel, job, built), Path(job.folder) / f"seed{job.config().seed}")


if __name__ == "__main__":
    main()
