"""One run = one directory: its rows, its checkpoints, its files. See run.py for the layout."""

from reinforge.run_store.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    list_checkpoints,
    save_checkpoint,
    score_checkpoint,
    verify_checkpoint,
)
from reinforge.run_store.codec import decode_state, encode_state
from reinforge.run_store.failpoint import FAILPOINTS, UPDATE_FAILPOINTS, failpoint
from reinforge.run_store.records import (
    CompletionRow,
    Event,
    EventRow,
    FunctionRow,
    PromptEpochRow,
    PromptRow,
    RewardUpdateRow,
    ScoreRow,
    Status,
    StepRecord,
    StepRow,
    TokenRow,
)
from reinforge.run_store.run import Run, config_hash, list_runs, reward_file

__all__ = [
    "FAILPOINTS",
    "UPDATE_FAILPOINTS",
    "Checkpoint",
    "CompletionRow",
    "Event",
    "EventRow",
    "FunctionRow",
    "PromptEpochRow",
    "PromptRow",
    "RewardUpdateRow",
    "Run",
    "ScoreRow",
    "Status",
    "StepRecord",
    "StepRow",
    "TokenRow",
    "config_hash",
    "decode_state",
    "encode_state",
    "failpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "list_runs",
    "reward_file",
    "save_checkpoint",
    "score_checkpoint",
    "verify_checkpoint",
]
