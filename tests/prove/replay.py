"""`reinforge rewards replay` on a real Countdown run; writes docs/proofs/replay-<date>.md.

Proves: rewards and advantages under a stricter format reward are what they come to by hand, on ten completions of a run
of 20 steps with seed 0. The arithmetic of this file shares no code with the command: it has the texts, the two stored
scores of each completion, and the formulas.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prove.page import ROOT, table, write_page

STEPS, LAST, NUM_CHECKED = 20, 5, 10
TOLERANCE = 1e-9
STRICT = '''\
import re


def format_reward(prompt: str, completion: str, example: dict[str, str]) -> float:
    """1.0 when the thinking ends with a claimed hit (`!`) and an answer block follows, otherwise 0.0."""
    return 1.0 if re.fullmatch(r"<think>[^<]*!</think><answer>[^<]*</answer>", completion) else 0.0
'''


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "strict.py").write_text(STRICT)
        recipe = ROOT / "src" / "reinforge" / "recipes" / "countdown" / "config.yaml"
        overrides = ["-o", f"train_steps={STEPS}", "-o", "seed=0", "-o", "eval.max_prompts=1"]
        reinforge(folder, "train", str(recipe), *overrides, "--name", "countdown")
        replay = ["rewards", "replay", "countdown", "--with", "strict.py", "--last", str(LAST)]
        shown = reinforge(folder, *replay, "--show", "0")
        found = json.loads(reinforge(folder, *replay, "--show", "100000", "--json"))
        groups = groups_of(folder / "runs" / "countdown", {one["id"] for one in spread(found["most_changed"])})
    checked = [check(one, groups[one["id"]]) for one in spread(found["most_changed"])]
    write(shown, replay, checked)
    sys.exit(not all(row["equal"] for row in checked))


def reinforge(folder: Path, *arguments: str) -> str:
    print("$ reinforge " + " ".join(arguments), flush=True)
    command = [sys.executable, "-m", "reinforge", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def spread(changed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten of all the completions whose reward or advantage changes, from most to least."""
    return [changed[place * (len(changed) - 1) // (NUM_CHECKED - 1)] for place in range(NUM_CHECKED)]


def groups_of(run_path: Path, ids: set[int]) -> dict[int, list[dict[str, Any]]]:
    """Completion -> its whole group as stored: text, format and correct score, reward, advantage."""
    from reinforge.run_store import Run

    with Run.open(run_path) as run:
        rows = run.completions(limit=-1)
        scores = run.scores(row.id for row in rows)
    stored: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        of_row = {score.name: score.value for score in scores[row.id]}
        stored.setdefault((row.step, row.place), []).append(
            {"id": row.id, "text": row.text, "reward": row.reward, "advantage": row.advantage, **of_row}
        )
    return {one["id"]: group for group in stored.values() for one in group if one["id"] in ids}


def check(one: dict[str, Any], group: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion's figures by hand, beside the command's."""
    own = next(row for row in group if row["id"] == one["id"])
    before, after = [by_hand(row, strict=False) for row in group], [by_hand(row, strict=True) for row in group]
    place = group.index(own)
    figures = {
        "reward_before": before[place],
        "reward_after": after[place],
        "advantage_before": advantage(before, place),
        "advantage_after": advantage(after, place),
    }
    equal = all(abs(figures[name] - one[name]) < TOLERANCE for name in figures)
    return {**one, "by_hand": figures, "rewards_after": after, "equal": equal}


def by_hand(row: dict[str, Any], *, strict: bool) -> float:
    """0.1 for the format and 0.9 for a correct answer. The stricter format is told from the text with string methods,
    not with the pattern."""
    thinking, _, answer = row["text"].partition("</think>")
    claims = thinking.startswith("<think>") and thinking.endswith("!") and thinking.count("<") == 1
    block = answer.startswith("<answer>") and answer.endswith("</answer>") and answer.count("<") == 2
    return 0.1 * (float(claims and block) if strict else row["format"]) + 0.9 * row["correct"]


def advantage(rewards: list[float], place: int) -> float:
    """(reward - mean) / (std + 1e-4), the std with n - 1; 0 in a group of equal rewards."""
    if len(set(rewards)) == 1:
        return 0.0
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return (rewards[place] - mean) / (std + 1e-4)


def write(shown: str, replay: list[str], checked: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"{row['step']}, {row['example']}, {row['generation']}",
            f"`{row['text'][:40] + '...' + row['text'][-40:] if len(row['text']) > 83 else row['text']}`",
            f"{row['reward_before']:g} -> {row['reward_after']:g}",
            " ".join(f"{reward:g}" for reward in row["rewards_after"]),
            f"{row['advantage_before']:.4f} -> {row['advantage_after']:.4f}",
            f"{row['by_hand']['advantage_before']:.4f} -> {row['by_hand']['advantage_after']:.4f}",
            "yes" if row["equal"] else "NO",
        ]
        for row in checked
    ]
    header = ["step, example, generation", "completion", "reward", "its group's rewards after", "advantage"]
    lines = [
        f"The Countdown recipe with seed 0, {STEPS} steps; then its format reward against a stricter one, on the"
        f" completions of the last {LAST} steps. The old one wants a thinking and an answer block; the new one",
        "",
        "```python",
        STRICT.rstrip(),
        "```",
        "",
        "wants the thinking to end with a hit. Weights: 0.1 for the format, 0.9 for a correct answer.",
        "",
        "```text",
        f"$ reinforge {' '.join(replay)} --show 0",
        shown.rstrip(),
        "```",
        "",
        f"## {NUM_CHECKED} completions by hand",
        "",
        "From the most to the least changed one. By hand: rewards from the text and the stored score of `correct`,"
        " advantages as (reward - mean) / (std + 0.0001) over the group's eight rewards. Equal: all four figures, to"
        f" {TOLERANCE:g}.",
        "",
        *table([*header, "by hand", "equal"], rows),
    ]
    write_page("replay", "Reward replay on a Countdown run", lines)


if __name__ == "__main__":
    main()
