"""A run made by the command line, for the commands that look at runs."""

import json
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge


@pytest.fixture(scope="session")
def trained(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which `reinforge train` has made the run `first` of 3 steps, with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "rewards.py").write_text(
        "def digits(prompt, completion, example):\n"
        "    return sum(char.isdigit() for char in completion) / max(len(completion), 1)\n"
        "def flaky(prompt, completion, example):\n"
        "    return 0.0 if example['number'] != '3' else 1 / 0\n"
    )
    rows = [{"prompt": f"number {i}", "number": i} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "base_model": str(tiny_qwen2),
        "reward_fns": {"functions": {"digits": "rewards.py:digits", "flaky": "rewards.py:flaky"}},
        "data": {"path": "rows.jsonl", "heldout": 2},
        "train_steps": 3,
        "prompts_per_step": 3,
        "num_generations": 4,
        "save_every": 1,
        "sampling_params": {"max_tokens": 8},
        "eval": {"samples_per_prompt": 2},
    }
    (folder / "train.yaml").write_text(json.dumps(config))
    arguments = [str(folder / "train.yaml"), "--runs-dir", str(folder / "runs"), "--name", "first"]
    assert reinforge(["train", *arguments]) == 0
    return folder
