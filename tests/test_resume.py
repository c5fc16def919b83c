"""A run that was killed and resumed is bitwise the run that never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reinforge.run_store import UPDATE_FAILPOINTS

KILL_LOOP = Path(__file__).with_name("kill_loop.py")


def kill_loop(tiny_qwen2, tmp_path, *options):
    command = [sys.executable, str(KILL_LOOP), "--model", str(tiny_qwen2), "--folder", str(tmp_path), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_killed_in_a_step_a_checkpoint_and_a_reward_update_then_resumed(tiny_qwen2, tmp_path):
    points = ["rows:before_commit=3", "checkpoint:after_prune=6", *UPDATE_FAILPOINTS]
    found = kill_loop(tiny_qwen2, tmp_path, "--failpoints", *points)
    assert found["wrong"] == []
    assert found["kills"] == 3 * len(points)


@pytest.mark.slow
def test_killed_with_rollouts_ahead_and_in_rounds_then_resumed(tiny_qwen2, tmp_path):
    points = ["rows:before_commit=3", "checkpoint:after_prune=5"]
    found = kill_loop(tiny_qwen2, tmp_path, "--ahead", "--failpoints", *points)
    assert found["wrong"] == []
    assert found["kills"] == 3 * len(points)


@pytest.mark.slow
def test_killed_with_guessed_tokens_then_resumed(tiny_qwen2, tmp_path):
    found = kill_loop(tiny_qwen2, tmp_path, "--guessing", "--failpoints", "rows:before_commit=1")
    assert found["wrong"] == []
    assert found["kills"] == 3
    assert found["guessed"][0] > 0.05


@pytest.mark.prove
def test_killed_at_every_failpoint_then_resumed(tiny_qwen2, tmp_path):
    assert kill_loop(tiny_qwen2, tmp_path, "--every-failpoint")["wrong"] == []


@pytest.mark.prove
def test_killed_at_random_moments_then_resumed(tiny_qwen2, tmp_path):
    found = kill_loop(tiny_qwen2, tmp_path, "--random-kills", "100")
    assert found["wrong"] == []
    assert found["kills"] >= 100
