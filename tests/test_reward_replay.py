"""Reward replay on a real run: a few real steps of the Countdown recipe, old format reward against a stricter one."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from reinforge import api, reward_replay
from reinforge.cli.main import run as reinforge
from reinforge.config_file import load_config
from reinforge.demo import recipe_folder
from reinforge.errors import DataError, UsageError
from reinforge.grading.reward_function import SourceText
from reinforge.grading.versions import RewardUpdate, apply_update
from reinforge.insight.replay import ReplayReport
from reinforge.reward_changes import get_config, update_config
from reinforge.reward_replay import replay
from reinforge.reward_updates import latest_functions
from reinforge.run_store import Run

STRICT = '''
import re

def format_reward(prompt: str, completion: str, example: dict[str, str]) -> float:
    """1.0 when the thinking ends with a claimed hit and an answer block follows, otherwise 0.0."""
    print("strict")
    return 1.0 if re.fullmatch(r"<think>[^<]*!</think><answer>[^<]*</answer>", completion) else 0.0
'''

SMALL = ["prompts_per_step=4", "eval.max_prompts=1", "eval.samples_per_prompt=1"]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real steps of 4 prompts and 8 completions, with the length penalty; its data lies beside it."""
    folder = tmp_path_factory.mktemp("countdown")
    shutil.copytree(recipe_folder(), folder / "recipe")
    overrides = ["seed=0", "train_steps=3", *SMALL]
    overrides += ["overlong.buffer_tokens=300", "overlong.penalty=0.05"]
    config = load_config([folder / "recipe" / "config.yaml"], overrides)
    return api.train(config, base_dir=folder / "recipe", runs_dir=folder / "runs", name="few")


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    path = tmp_path / "strict.py"
    path.write_text(STRICT)
    return path


def replayed(run_path: Path, strict: Path | None = None, last: int = 20, **weights: float) -> ReplayReport:
    with Run.open(run_path) as run:
        texts = {"format": SourceText(strict.read_text(), str(strict), "format_reward")} if strict else {}
        return replay(run, apply_update(latest_functions(run), RewardUpdate(texts, weights)), last, num_most_changed=99)


def test_a_replay_tells_how_far_it_is(run_path: Path, strict: Path):
    told: list[tuple[str, int, int]] = []
    with Run.open(run_path) as run:
        texts = {"format": SourceText(strict.read_text(), str(strict), "format_reward")}
        after = apply_update(latest_functions(run), RewardUpdate(texts))
        replay(run, after, progress=lambda *progress: told.append(progress))
    assert told == [("completions judged again", done, 96) for done in range(8, 97, 8)]


def test_ten_completions_by_hand(run_path: Path, strict: Path):
    """Scores, rewards and advantages of the ten most changed completions, from their texts alone."""
    found = replayed(run_path, strict)
    assert (found.num_groups, found.num_completions) == (12, 96)
    assert len(found.most_changed) > 10
    with Run.open(run_path) as run:
        rows = {row.id: row for row in run.completions(limit=-1)}
        scores = run.scores(rows)
    for one in found.most_changed[:10]:
        group = [row for row in rows.values() if (row.step, row.place) == (rows[one.id].step, rows[one.id].place)]
        after = [by_hand(row.text, {s.name: s.value for s in scores[row.id]}) for row in group]
        mean = sum(after) / 8
        std = math.sqrt(sum((reward - mean) ** 2 for reward in after) / 7)
        own = by_hand(one.text, {s.name: s.value for s in scores[one.id]})
        assert one.after.reward == pytest.approx(own, abs=1e-12)
        assert one.before.reward == rows[one.id].reward
        assert one.advantage_before == rows[one.id].advantage
        assert one.advantage_after == pytest.approx((own - mean) / (std + 1e-4) if len(set(after)) > 1 else 0, abs=1e-9)


def by_hand(text: str, stored: dict[str, float | None]) -> float:
    """The reward with the stricter format: its 0.1, 0.9 for a correct answer, less the length penalty."""
    thinking, _, answer = text.partition("</think>")
    ends_in_a_hit = thinking.startswith("<think>") and thinking.endswith("!") and thinking.count("<") == 1
    block = answer.startswith("<answer>") and answer.endswith("</answer>") and answer.count("<") == 2
    penalty = stored["overlong"] or 0.0
    return 0.1 * (ends_in_a_hit and block) + 0.9 * (stored["correct"] or 0.0) + 0.05 * penalty


def test_only_the_changed_function_is_judged_again(run_path: Path, strict: Path, monkeypatch: pytest.MonkeyPatch):
    judged = []
    whole = reward_replay.RewardFunctionGrader
    monkeypatch.setattr(
        reward_replay, "RewardFunctionGrader", lambda f, *rest, **named: judged.append(f) or whole(f, *rest, **named)
    )
    found = replayed(run_path, strict)
    assert [[function.version for function in functions] for functions in judged] == [["format_v2"]]
    by_name = {function.name: function for function in found.functions}
    assert list(by_name) == ["format", "correct", "overlong"]
    assert (by_name["correct"].shift, by_name["overlong"].num_changed) == (0.0, 0)
    assert by_name["format"].version_after == "format_v2"
    assert by_name["format"].mean_after < by_name["format"].mean_before  # type: ignore[operator]


def test_a_new_weight_needs_no_judging_and_no_data(run_path: Path, tmp_path: Path):
    alone = tmp_path / "run"
    shutil.copytree(run_path, alone)
    about = json.loads((alone / "run.json").read_text())
    (alone / "run.json").write_text(json.dumps(about | {"base_dir": str(tmp_path / "gone")}))
    found = replayed(alone, format=1.0)
    shift = found.functions[0]
    assert (shift.weight_before, shift.weight_after, shift.shift) == (0.1, 1.0, 0.0)
    assert found.reward_mean_after == pytest.approx(found.reward_mean_before + 0.9 * shift.mean_before)  # type: ignore[operator]


def test_the_functions_of_the_run_change_nothing(run_path: Path):
    with Run.open(run_path) as run:
        found = replay(run, latest_functions(run))
    assert found.most_changed == ()
    assert found.advantage_shift_max < 1e-12
    assert found.reward_mean_before == found.reward_mean_after


def test_an_equal_text_that_is_judged_anew_gives_the_stored_scores(run_path: Path):
    with Run.open(run_path) as run:
        functions = [
            replace(f, source=f.source + "\n# the same\n", version=f"{f.name}_v2") for f in latest_functions(run)
        ]
        found = replay(run, functions)
    assert found.most_changed == ()
    assert [f.version_after for f in found.functions] == ["format_v2", "correct_v2", "overlong_v1"]
    assert found.functions[1].num_compared == 96


def test_the_last_steps_only(run_path: Path, strict: Path):
    found = replayed(run_path, strict, last=1)
    assert (found.first_step, found.last_step, found.num_completions) == (3, 3, 32)


def test_what_an_earlier_update_moved_is_not_laid_to_this_one(run_path: Path, strict: Path, tmp_path: Path):
    """Three steps under the old format reward, two under the strict one: only these two are compared."""
    folder = tmp_path / "run"

    class UpdateAfterThree(api.SilentWatcher):
        def step(self, step, metrics, groups):
            if step == 3:
                changed = get_config(folder)
                changed.reward_fns["format"] = f"{strict}:format_reward"
                update_config(folder, changed)

    recipe = run_path.parents[1] / "recipe"
    config = load_config([recipe / "config.yaml"], ["seed=0", "train_steps=5", *SMALL])
    api.train(config, base_dir=recipe, runs_dir=tmp_path, name="run", watcher=UpdateAfterThree())
    found = replayed(folder, correct=0.5)
    assert (found.first_step, found.last_step) == (4, 5)
    moves = {one.name: (one.mean_before, one.mean_after) for one in found.functions}
    assert moves["format"][0] == moves["format"][1]


def test_a_removed_function_and_a_failing_one(run_path: Path, tmp_path: Path):
    failing = tmp_path / "failing.py"
    failing.write_text("def format_reward(prompt, completion, example):\n    return 1 / 0\n")
    found = replayed(run_path, failing)
    assert (found.functions[0].errors_after, found.functions[0].mean_after) == (96, None)
    with Run.open(run_path) as run:
        found = replay(run, [function for function in latest_functions(run) if function.name == "correct"])
    assert [(f.name, f.version_after) for f in found.functions] == [
        ("correct", "correct_v1"), ("overlong", "overlong_v1"), ("format", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{"on_error": "mask"}, {"default": 0.5}, {"fallback": "correct"}])
def test_settings_of_the_run_decide_what_a_failure_counts(run_path: Path, tmp_path: Path, settings: dict[str, object]):
    failing = tmp_path / "failing.py"
    failing.write_text("def format_reward(prompt, completion, example):\n    return 1 / 0\n")
    run = tmp_path / "run"
    shutil.copytree(run_path, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["reward_fns"]["settings"] = {"format": settings}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = replayed(run, failing)
    assert len(found.most_changed) > 10
    for one in found.most_changed:
        _, correct, overlong = (score.value or 0.0 for score in one.after.scores)
        stand_in = {"default": 0.5, "fallback": correct}.get(*settings)  # type: ignore[call-overload]
        whole = None if stand_in is None else 0.1 * stand_in + 0.9 * correct + 0.05 * overlong
        assert one.after.reward == (None if whole is None else pytest.approx(whole, abs=1e-12))


def test_changed_data_is_refused(run_path: Path, strict: Path, tmp_path: Path):
    other = tmp_path / "run"
    shutil.copytree(run_path, other)
    about = json.loads((other / "run.json").read_text())
    about["fingerprints"]["data"] = "0" * 64
    (other / "run.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="is not what the run began with"):
        replayed(other, strict)


def test_a_run_without_steps_is_refused(tmp_path: Path):
    config = {"base_model": "m", "reward_fns": {"functions": {"r": "r.py:r"}}}
    Run.create(tmp_path, "empty", config, {"functions": [], "base_dir": "."}).close()
    with Run.open(tmp_path / "empty") as run, pytest.raises(UsageError, match="no completions yet"):
        replay(run, [])


def test_functions_that_take_token_ids_get_the_stored_ones(run_path: Path, tmp_path: Path):
    batched = tmp_path / "strict.py"
    batched.write_text(
        "def format_reward(completions, completion_ids, **columns):\n    return [len(ids) for ids in completion_ids]\n"
    )
    found = replayed(run_path, batched)
    with Run.open(run_path) as run:
        num_tokens = {row.id: row.num_tokens for row in run.completions(limit=-1)}
    assert len(found.most_changed) == 96
    for one in found.most_changed:
        assert one.after.scores[0].value == num_tokens[one.id]


def test_the_command(run_path: Path, strict: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    arguments = ["rewards", "replay", str(run_path), "--with", str(strict)]
    before = sorted(path.relative_to(run_path) for path in run_path.rglob("*"))
    assert reinforge([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["functions"][0]["version_after"] == "format_v2"
    assert set(found["most_changed"][0]["scores_after"]) == {"format", "correct", "overlong"}
    assert reinforge([*arguments, "--last", "2", "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("64 completions in 8 groups, steps 2 to 3; nothing is applied\n")
    assert re.search(r"^format_v1 -> format_v2 +0\.1 ", out, re.MULTILINE)
    assert out.count("-- step") == 1
    assert sorted(path.relative_to(run_path) for path in run_path.rglob("*")) == before
    assert reinforge(["rewards", "replay", str(run_path)]) == 2
    assert "Name a file: --with FILE." in capsys.readouterr().err
