"""A run directory: rows in, rows out; one writer; readers that disturb nobody; rewinding."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, variance

import pytest

from reinforge.errors import CheckpointError, SetupError, UsageError
from reinforge.run_store import Event, Run, StepRecord, list_runs, reward_file
from reinforge.run_store import run as run_module

from .conftest import CONFIG, make_record


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def aggregates(run: Run) -> list[object]:
    timeless = [replace(row, latency_mean_s=0.0) for row in run.functions()]
    return [timeless, run.prompt_epochs(), run.last_step()]


def dump(run: Run) -> list[tuple]:
    """Every row of every table but wall time and history."""
    db = run._db
    tables = ("prompts", "completions", "tokens", "functions", "prompt_epochs")
    rows = [row for table in tables for row in db.execute(f"SELECT * FROM {table}")]
    return rows + [(step, run.row_hash(step)) for step in range(1, run.last_step() + 1)]


def test_everything_recorded_is_read_back(run: Run):
    record = make_record(1)
    run.record_step(record)
    rows = run.completions(step=1)
    scores = run.scores(row.id for row in rows)
    expected = [
        (place, group, completion, grade, advantage)
        for place, (group, advantages) in enumerate(zip(record.groups, record.advantages_PG, strict=True))
        for completion, grade, advantage in zip(group.completions, group.grades, advantages, strict=True)
    ]
    assert len(rows) == len(expected) == 12
    for row, (place, group, completion, grade, advantage) in zip(rows, expected, strict=True):
        assert (row.place, row.example, row.epoch) == (place, group.prompt.example.index, group.epoch)
        assert (row.generation, row.text) == (completion.generation, completion.text)
        assert (row.finish_reason, row.num_tokens) == (completion.finish_reason, completion.num_tokens)
        assert (row.policy_version, row.num_prompt_tokens) == (completion.policy_version, 3)
        assert (row.reward, row.state, row.advantage) == (grade.reward, grade.state, advantage)
        tokens = run.tokens(row.id)
        assert tokens is not None
        assert tokens.token_ids == completion.token_ids
        assert tokens.logprobs == completion.logprobs
        assert tokens.sampled_logprobs == completion.sampled_logprobs
        for got, score in zip(scores[row.id], grade.scores, strict=True):
            assert (got.name, got.version, got.weight) == (score.name, score.version, score.weight)
            assert (got.value, got.state, got.kind, got.prints) == (score.value, score.state, score.kind, score.prints)
            assert (got.latency_s, got.stand_in, got.metrics) == (score.latency_s, score.stand_in, score.metrics)
            assert got.message == score.message.replace("\ud800", "\\ud800")
    (step,) = run.steps()
    assert (step.metrics, step.state_hash, step.num_completions) == (dict(record.metrics), "hash of 1", 12)
    assert [(event.kind, event.data) for event in run.events()] == [("note", {"step": 1})]
    assert run.prompts([1, 99])[1].text == "<user>question 1"


def test_aggregates_equal_their_definition(run: Run):
    records = [make_record(step) for step in range(1, 8)]
    for record in records:
        run.record_step(record)
    groups = [group for record in records for group in record.groups]
    for row in run.prompt_epochs():
        rewards = [r for g in groups if g.prompt.example.index == row.example for r in g.rewards_G if r is not None]
        assert row.num_completions == len(rewards)
        assert row.mean == pytest.approx(fmean(rewards), abs=1e-14)
        assert row.variance == pytest.approx(variance(rewards), abs=1e-14)
    assert len(run.prompt_epochs()) == 5
    for function in run.functions():
        scores = [s for g in groups for grade in g.grades for s in grade.scores if s.name == function.name]
        counts = [sum(score.state == state for score in scores) for state in ("ok", "error", "masked")]
        assert [function.num_ok, function.num_error, function.num_masked] == counts
        values = [score.value for score in scores if score.value is not None]
        assert function.num_ok - function.num_inapplicable == len(values)
        assert function.mean == pytest.approx(fmean(values), abs=1e-14)
        assert function.latency_mean_s == pytest.approx(fmean(score.latency_s for score in scores), abs=1e-14)
        assert (function.first_step, function.last_step) == (1, 7)


def test_a_step_that_reuses_a_batch_has_only_its_step_row(run: Run):
    run.record_step(make_record(1))
    run.record_step(StepRecord(step=2, metrics={"policy/loss": 0.5}, state_hash="h2"))
    assert [row.num_completions for row in run.steps()] == [12, 0]
    assert run.completions(step=2) == []


@pytest.mark.parametrize(("step", "example"), [(None, None), (3, None), (None, 4), (4, 4)])
def test_pages_join_up_to_the_whole(run: Run, step: int | None, example: int | None):
    for number in range(1, 7):
        run.record_step(make_record(number))
    whole = [
        row for row in run.completions(limit=10_000) if step in (None, row.step) and example in (None, row.example)
    ]
    pages, after = [], 0
    while page := run.completions(step=step, example=example, limit=5, after=after):
        assert len(page) <= 5
        pages += page
        after = page[-1].id
    assert pages == whole
    assert whole
    assert all(first.id < second.id for first, second in pairwise(whole))


def test_tokens_are_dropped_with_age(run: Run):
    for step in range(1, 6):
        run.record_step(make_record(step), keep_tokens_steps=2)
    kept = {row.step for row in run.completions(limit=1000) if run.tokens(row.id) is not None}
    assert kept == {4, 5}


def test_dropping_tokens_does_not_change_the_row_hash(run: Run):
    run.record_step(make_record(1))
    before = run.row_hash(1)
    run.record_step(make_record(2), keep_tokens_steps=0)
    assert run.tokens(1) is None
    assert run.row_hash(1) == before


def test_row_hash_sees_everything_but_wall_time(tmp_path: Path):
    base = make_record(1)
    group = base.groups[0]

    def with_score(**change: object) -> StepRecord:
        score = replace(group.grades[0].scores[0], **change)
        grade = replace(group.grades[0], scores=(score, *group.grades[0].scores[1:]))
        return replace(base, groups=(replace(group, grades=(grade, *group.grades[1:])), *base.groups[1:]))

    def with_completion(**change: object) -> StepRecord:
        completion = replace(group.completions[0], **change)
        changed = replace(group, completions=(completion, *group.completions[1:]))
        return replace(base, groups=(changed, *base.groups[1:]))

    different = [
        replace(base, state_hash="other"),
        replace(base, metrics={**base.metrics, "policy/loss": 0.2}),
        replace(base, events=()),
        replace(base, advantages_PG=((0.5,) * 4, *base.advantages_PG[1:])),
        with_score(prints="other"),
        with_score(message="other"),
        with_score(version="format_v2"),
        with_score(stand_in=0.5),
        with_score(metrics={"words": 3.0}),
        with_completion(text="other"),
        with_completion(logprobs=(-9.0,) * group.completions[0].num_tokens),
    ]
    equal = [
        replace(base, metrics={**base.metrics, "time/step_s": 9.0, "reward/format/latency_max_s": 3.0}),
        with_score(latency_s=99.0),
        with_score(cached=True),
    ]

    def hash_of(record: StepRecord, name: str) -> str:
        with Run.create(tmp_path, name, CONFIG, {}) as run:
            run.record_step(record)
            return run.row_hash(1)

    expected = hash_of(base, "base")
    hashes = [hash_of(record, f"different{i}") for i, record in enumerate(different)]
    assert len({expected, *hashes}) == len(different) + 1
    assert {hash_of(record, f"equal{i}") for i, record in enumerate(equal)} == {expected}


def test_rewound_and_repeated_equals_never_interrupted(tmp_path: Path):
    with Run.create(tmp_path, "straight", CONFIG, {}) as straight:
        for step in range(1, 9):
            straight.record_step(make_record(step), keep_tokens_steps=3)
        expected, aggregated = dump(straight), aggregates(straight)
    with Run.create(tmp_path, "resumed", CONFIG, {}) as resumed:
        for step in range(1, 7):
            resumed.record_step(make_record(step, wall=0.5), keep_tokens_steps=3)
        resumed.record_event(Event("interrupted", "killed"))
        resumed.rewind(4)
        assert resumed.last_step() == 4
        for step in range(5, 9):
            resumed.record_step(make_record(step, wall=0.7), keep_tokens_steps=3)
        # Tokens the first attempt dropped below step 4 stay dropped, as in the straight run by the end.
        assert dump(resumed) == expected
        assert aggregates(resumed) == aggregated
        kinds = [event.kind for event in resumed.events()]
        assert kinds.count("interrupted") == 1, "history outlives a rewind"
        assert kinds.count("note") == 8
        ids = [event.id for event in resumed.events()]
        assert ids == sorted(set(ids))


def test_rewind_to_the_start_empties_everything(run: Run):
    for step in range(1, 4):
        run.record_step(make_record(step))
    run.rewind(0)
    assert (run.steps(), run.completions(), run.functions(), run.prompt_epochs()) == ([], [], [], [])
    assert run.prompts(range(5)) == {}


def test_rewind_past_the_rows_is_refused(run: Run):
    run.record_step(make_record(1))
    with pytest.raises(CheckpointError, match=r"at step 5, but the rows .* end at step 1"):
        run.rewind(5)


def test_a_failed_step_leaves_no_row(run: Run):
    run.record_step(make_record(1))
    before = dump(run)
    with pytest.raises(ValueError, match="Out of range float"):
        run.record_step(replace(make_record(2), metrics={"policy/loss": float("nan")}))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        run.record_step(replace(make_record(2), advantages_PG=((0.0,),)))
    assert dump(run) == before
    run.record_step(make_record(2))
    assert run.last_step() == 2


def test_a_second_trainer_is_refused_by_name(run: Run):
    with pytest.raises(UsageError, match=f"is being trained by process {os.getpid()} on "):
        Run.open(run.path, writable=True)
    run.close()
    Run.open(run.path, writable=True).close()


def test_a_run_name_is_used_once(run: Run):
    with pytest.raises(UsageError, match="exists already"):
        Run.create(run.path.parent, "first", CONFIG, {})
    with pytest.raises(UsageError, match="cannot name"):
        Run.create(run.path.parent, "../escape", CONFIG, {})


def test_a_run_that_cannot_be_begun_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="No space left"):
        Run.create(tmp_path, "first", CONFIG, {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    Run.create(tmp_path, "first", CONFIG, {}).close()


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run"):
        Run.open(tmp_path)
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "missing") == []


def test_a_reader_cannot_write(run: Run):
    with Run.open(run.path) as reader, pytest.raises(UsageError, match="opened for reading"):
        reader.record_step(make_record(1))


def test_readers_see_each_step_while_the_trainer_writes(run: Run):
    names = None
    for step in range(1, 4):
        run.record_step(make_record(step))
        with Run.open(run.path) as reader:
            assert reader.last_step() == step
            assert reader.status() == ("running", "")
            assert len(reader.completions(limit=1000)) == 12 * step
        names = names or set(files_of(run.path))
        assert set(files_of(run.path)) == names, "readers create no file"


def test_a_finished_run_is_a_single_file_and_reads_without_a_trace(run: Run):
    run.record_step(make_record(1))
    run.finish("succeeded")
    before = files_of(run.path)
    assert {name for name in before if name.startswith("run.db")} == {"run.db"}
    with Run.open(run.path) as reader:
        assert reader.status() == ("succeeded", "")
        assert len(reader.completions()) == 12
    assert files_of(run.path) == before


def test_finishing_while_a_reader_looks_still_leaves_a_file_that_can_be_copied(run: Run, tmp_path: Path):
    run.record_step(make_record(1))
    with Run.open(run.path) as reader:
        assert reader.last_step() == 1
        run.finish("succeeded")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.db", "run.json", "config.yaml"):
        shutil.copyfile(run.path / name, copy / name)
    before = files_of(copy)
    with Run.open(copy) as reader:
        assert (reader.status(), reader.last_step()) == (("succeeded", ""), 1)
    assert files_of(copy) == before


@pytest.mark.parametrize("leave_out", [(), ("run.db-shm",), ("run.db-shm", "run.db-wal")])
def test_a_copy_of_a_live_run_can_be_read(run: Run, tmp_path: Path, leave_out: tuple[str, ...]):
    run.record_step(make_record(1))
    run._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    run.record_step(make_record(2))
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns(*leave_out))
    before = set(files_of(copy))
    with Run.open(copy) as reader:
        assert reader.last_step() == (1 if "run.db-wal" in leave_out else 2)
        assert reader.status() == ("interrupted", "process ended")
    assert set(files_of(copy)) == before


def test_a_run_in_a_folder_without_write_permission_can_be_read(run: Run):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    run.record_step(make_record(1))
    run.finish("succeeded")
    run.path.chmod(0o555)
    try:
        with Run.open(run.path) as reader:
            assert reader.last_step() == 1
    finally:
        run.path.chmod(0o755)


CHILD = """
import sys, time
from pathlib import Path
from reinforge.run_store import Run
sys.path.insert(0, {tests!r})
from conftest import make_record
run = Run.open(Path({path!r}), writable=True)
for step in range(run.last_step() + 1, run.last_step() + 4):
    run.record_step(make_record(step))
import multiprocessing
multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_trainer_leaves_an_interrupted_run_that_goes_on(run: Run):
    """Also with an orphaned worker process alive: a fork must not inherit the lock."""
    run.close()
    source = CHILD.format(tests=str(Path(__file__).parent), path=str(run.path))
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with Run.open(run.path) as reader:
            assert (reader.status(), reader.last_step()) == (("running", ""), 3)
        with pytest.raises(UsageError, match=f"process {child.pid} on"):
            Run.open(run.path, writable=True)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        before = set(files_of(run.path))
        with Run.open(run.path) as reader:
            assert (reader.status(), reader.last_step()) == (("interrupted", "process ended"), 3)
        assert set(files_of(run.path)) == before
        with Run.open(run.path, writable=True) as resumed:
            assert resumed.status() == ("running", "")
            resumed.record_step(make_record(4))
            resumed.finish("stopped", "budget")
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
    with Run.open(run.path) as reader:
        assert (reader.status(), reader.last_step()) == (("stopped", "budget"), 4)
        assert len(reader.completions(limit=1000)) == 48


def test_summary_says_what_a_list_needs(run: Run):
    run.save_evaluation("step-00000000", {"step": 0, "score": 0.2})
    run.record_step(make_record(1))
    run.record_step(make_record(2))
    run.save_evaluation("step-00000002", {"step": 2, "score": 0.6})
    summary = run.summary()
    assert summary["duration_s"] > 0
    assert summary | {"duration_s": 0, "id": "", "started": ""} == {
        "id": "", "name": "first", "status": "running", "reason": "", "step": 2, "steps": 20, "reward_mean": 2 / 7,
        "heldout_before": 0.2, "heldout_after": 0.6, "started": "", "duration_s": 0, "path": str(run.path),
    }  # fmt: skip


def test_the_reward_of_a_summary_is_that_of_the_newest_step_that_sampled(tmp_path: Path):
    with Run.create(tmp_path / "runs", "twice", CONFIG | {"num_iterations": 2}, {}) as run:
        assert run.summary()["reward_mean"] is None
        run.record_step(make_record(1))
        run.record_step(replace(make_record(2), metrics={"policy/loss": 0.1}, groups=(), advantages_PG=()))
        assert run.summary()["reward_mean"] == 1 / 7


def test_runs_are_listed_newest_first(run: Run, tmp_path: Path):
    parent = run.path.parent
    (parent / "not a run").mkdir()
    time.sleep(1.0 - time.time() % 1.0 + 0.01)  # `created` counts whole seconds.
    Run.create(parent, "second", CONFIG, {}).close()
    assert [path.name for path in list_runs(parent)] == ["second", "first"]


def test_stop_requests_are_used_up(run: Run):
    assert run.take_stop_request() is None
    (run.path / "control" / "stop").write_text("enough\n")
    assert run.take_stop_request() == "enough"
    assert run.take_stop_request() is None


def test_a_stop_request_to_a_trainer_that_died_does_not_stop_the_next(run: Run):
    run.close()
    (run.path / "control" / "stop").write_text("enough")
    with Run.open(run.path, writable=True) as resumed:
        assert resumed.take_stop_request() is None


def test_a_full_disk_is_an_error_that_says_so_and_costs_nothing(run: Run):
    run.record_step(make_record(1))
    (pages,) = run._db.execute("PRAGMA page_count").fetchone()
    run._db.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    with pytest.raises(SetupError, match=r"run\.db could not be written: database or disk is full"):
        for step in range(2, 10):
            run.record_step(make_record(step))
    stored = run.last_step()
    assert [row.step for row in run.steps()] == list(range(1, stored + 1))
    assert len(run.completions(limit=1000)) == 12 * stored
    run._db.execute("PRAGMA max_page_count = 1000000").fetchone()
    run.record_step(make_record(stored + 1))
    assert run.last_step() == stored + 1


def test_rewinding_takes_later_evaluations_back(run: Run):
    for step in (1, 2):
        run.record_step(make_record(step))
        run.save_evaluation(f"step-{step}", {"step": step, "score": step / 10})
    run.rewind(1)
    assert [evaluation["step"] for evaluation in run.evaluations()] == [1]


def test_rows_can_be_copied_while_the_trainer_lives(run: Run, tmp_path: Path):
    run.record_step(make_record(1))
    copy = tmp_path / "copy"
    copy.mkdir()
    with Run.open(run.path) as reader:
        reader.copy_rows(copy / "run.db")
    for name in ("run.json", "config.yaml"):
        shutil.copyfile(run.path / name, copy / name)
    with Run.open(copy) as copied:
        assert dump(copied) == dump(run)


def test_the_config_can_be_read_back(run: Run):
    assert run.config() == CONFIG
    assert run.about["python"] == "3.11"
    assert len(run.about["config_hash"]) == 64


def test_reward_sources_are_kept_by_version(run: Run):
    path = run.save_reward_source("is / right_v1", "def f(): return '\ud800'")
    assert path.parent == run.path / "rewards"
    assert path.read_bytes().decode("utf-8", "surrogatepass") == "def f(): return '\ud800'"


def test_another_format_is_refused(run: Run):
    run.finish("succeeded")
    with sqlite3.connect(run.path / "run.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="has format 99"):
        Run.open(run.path)


def test_files_of_a_new_run_are_there_before_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {reward_file("a/b_v1"): "text \ud800\r\n", "dataset.json": "[]"}
    written = []
    replace = run_module.replace_durably
    monkeypatch.setattr(run_module, "replace_durably", lambda p, data: (written.append(p.name), replace(p, data)))
    with Run.create(tmp_path, "run", CONFIG, {}, files) as run:
        assert run.read_reward_source("a/b_v1") == "text \ud800\r\n"
        assert (run.path / "dataset.json").read_text() == "[]"
    assert written[-1] == "run.json"
    assert set(written) == {"config.yaml", "a%2Fb_v1.py", "dataset.json", "run.json"}


@pytest.mark.parametrize("file", ["run.json", "config.yaml", "run.db", "evaluations/step-00000000.json"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, file):
    with Run.create(tmp_path, "run", CONFIG, {}) as run:
        run.save_evaluation("step-00000000", {"step": 0, "score": 0.5})
    (tmp_path / "run" / file).write_bytes(b"\x00{[garbage" * 200)
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")), Run.open(tmp_path / "run") as damaged:
        damaged.summary()
    assert list_runs(tmp_path) == [tmp_path / "run"]
