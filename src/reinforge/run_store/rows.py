"""Writing steps into `run.db` and taking them back. Every function here runs inside the caller's transaction."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from reinforge.run_store.packing import pack_text, pack_tokens, plain_text, unpack_text
from reinforge.run_store.records import Event, RewardUpdateRow, StepRecord
from reinforge.run_store.wall_time import is_wall_time
from reinforge.types import Group, Score


def insert_step(db: sqlite3.Connection, record: StepRecord, at: float) -> None:
    """Insert a step with all that was collected for it, and bring the aggregates up to date."""
    num_completions = sum(len(group.completions) for group in record.groups)
    metrics = _json({name: value for name, value in record.metrics.items() if not is_wall_time(name)})
    times = _json({name: value for name, value in record.metrics.items() if is_wall_time(name)})
    row = (record.step, metrics, times, record.state_hash, num_completions, at)
    db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?)", row)
    for event in record.events:
        insert_event(db, record.step, event, at, of_step=True)
    accidents = [(key, json.dumps(asdict(score))) for key, score in record.accidents.items()]
    db.executemany("INSERT OR REPLACE INTO accidents VALUES (?, ?)", accidents)
    if record.groups:
        _insert_prompts(db, record)
        _insert_scores(db, record, first_id=_insert_completions(db, record))
        _add_to_prompt_epochs(db, record.groups)


def insert_event(db: sqlite3.Connection, step: int, event: Event, at: float, *, of_step: bool) -> None:
    """Insert an event. Those `of_step` are a result of training; the others tell the history of the processes and
    outlive a rewind."""
    row = (step, of_step, at, event.kind, event.level, plain_text(event.message), _json(event.data))
    db.execute(
        "INSERT INTO events (step, of_step, at, kind, level, message, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
        row,
    )


def insert_reward_update(db: sqlite3.Connection, update: RewardUpdateRow) -> None:
    """Insert a change of the reward functions; it is never taken back."""
    functions = json.dumps([dict(function) for function in update.functions])
    db.execute(
        "INSERT INTO reward_updates (request, step, functions, message, shift) VALUES (?, ?, ?, ?, ?)",
        (update.request, update.step, functions, plain_text(update.message), update.shift and _json(update.shift)),
    )


def drop_tokens(db: sqlite3.Connection, up_to_step: int) -> None:
    """Forget token ids and logprobs of completions up to a step."""
    # Not max(id), for which SQLite walks the index over all of these steps.
    query = "SELECT id FROM completions WHERE step <= ? ORDER BY step DESC, id DESC LIMIT 1"
    last = db.execute(query, (up_to_step,)).fetchone()
    if last is not None:
        db.execute("DELETE FROM tokens WHERE completion <= ?", last)


def delete_after(db: sqlite3.Connection, step: int) -> None:
    """Delete every row that steps after `step` wrote; the aggregates are as if these steps had never been."""
    touched = db.execute("SELECT DISTINCT example, epoch FROM completions WHERE step > ?", (step,)).fetchall()
    first = db.execute("SELECT id FROM completions WHERE step > ? ORDER BY step, id LIMIT 1", (step,)).fetchone()
    if first is not None:
        db.execute("DELETE FROM scores WHERE completion >= ?", first)
        db.execute("DELETE FROM tokens WHERE completion >= ?", first)
    for table in ("completions", "steps", "function_steps"):
        db.execute(f"DELETE FROM {table} WHERE step > ?", (step,))
    for table in ("prompts", "functions"):
        db.execute(f"DELETE FROM {table} WHERE first_step > ?", (step,))
    db.execute("DELETE FROM events WHERE step > ? AND of_step", (step,))
    for example, epoch in touched:
        _recompute_prompt_epoch(db, example, epoch)


def hash_step(db: sqlite3.Connection, step: int) -> str:
    """sha256 over all rows of a step but wall time. Token arrays count through their digest, so dropping them does not
    change it; row ids do not count."""
    digest = hashlib.sha256()

    def add(kind: str, query: str) -> None:
        for row in db.execute(query, {"step": step}):
            values = [unpack_text(value) if isinstance(value, bytes) else value for value in row]
            digest.update(f"{kind} {values!r}\n".encode("utf-8", "surrogatepass"))

    add("step", "SELECT step, metrics, state_hash FROM steps WHERE step = :step")
    add("prompt", "SELECT example, text, num_tokens FROM prompts WHERE first_step = :step ORDER BY example")
    add(
        "completion",
        "SELECT epoch, place, example, generation, text, finish_reason, num_tokens, policy_version, reward, advantage,"
        " state, hex(tokens_digest) FROM completions WHERE step = :step ORDER BY id",
    )
    add(
        "score",
        "SELECT place, generation, position, name, version, weight, value, s.state, kind, message, prints, stand_in,"
        " metrics FROM scores s"
        " JOIN completions c ON c.id = s.completion JOIN functions f ON f.id = s.function WHERE step = :step"
        " ORDER BY c.id, position",
    )
    add("event", "SELECT kind, level, message, data FROM events WHERE step = :step AND of_step ORDER BY id")
    return digest.hexdigest()


def _insert_prompts(db: sqlite3.Connection, record: StepRecord) -> None:
    known = {
        example
        for group in record.groups
        for (example,) in db.execute("SELECT example FROM prompts WHERE example = ?", (group.prompt.example.index,))
    }
    new = {group.prompt.example.index: group.prompt for group in record.groups}
    db.executemany(
        "INSERT INTO prompts VALUES (?, ?, ?, ?)",
        [
            (example, record.step, pack_text(prompt.text), prompt.num_tokens)
            for example, prompt in new.items()
            if example not in known
        ],
    )


def _insert_completions(db: sqlite3.Connection, record: StepRecord) -> int:
    """Insert completions and tokens in the order of (place, generation); returns the first's id."""
    last_id: int = db.execute("SELECT coalesce(max(id), 0) FROM completions").fetchone()[0]
    rows: list[tuple[object, ...]] = []
    tokens: list[tuple[int, bytes]] = []
    for place, (group, advantages) in enumerate(zip(record.groups, record.advantages_PG, strict=True)):
        for completion, grade, advantage in zip(group.completions, group.grades, advantages, strict=True):
            packed = pack_tokens(completion)
            completion_id = last_id + len(rows) + 1
            tokens.append((completion_id, packed))
            rows.append(
                (
                    completion_id, record.step, group.epoch, place, group.prompt.example.index, completion.generation,
                    pack_text(completion.text), completion.finish_reason, completion.num_tokens,
                    completion.policy_version, grade.reward, advantage, grade.state,
                    hashlib.blake2b(packed, digest_size=16).digest(),
                )
            )  # fmt: skip
    db.executemany("INSERT INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.executemany("INSERT INTO tokens VALUES (?, ?)", tokens)
    return last_id + 1


def _insert_scores(db: sqlite3.Connection, record: StepRecord, first_id: int) -> None:
    functions: dict[tuple[str, str, float], int] = {}
    totals: dict[int, list[float]] = {}
    rows: list[tuple[object, ...]] = []
    grades = (grade for group in record.groups for grade in group.grades)
    for completion, grade in enumerate(grades, start=first_id):
        for position, score in enumerate(grade.scores):
            key = (score.name, score.version, score.weight)
            if key not in functions:
                functions[key] = _function_id(db, record.step, score)
            function = functions[key]
            _add_to_totals(totals.setdefault(function, [0, 0, 0, 0, 0.0, 0.0]), score)
            rows.append(
                (
                    completion, position, function, score.value, score.state, score.kind or None,
                    plain_text(score.message) if score.message else None,
                    pack_text(score.prints) if score.prints else None, score.latency_s, score.stand_in,
                    _json(score.metrics) if score.metrics else None,
                )
            )  # fmt: skip
    db.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.executemany(
        "INSERT INTO function_steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(record.step, function, *values) for function, values in totals.items()],
    )


def _add_to_totals(totals: list[float], score: Score) -> None:
    totals[("ok", "error", "masked").index(score.state)] += 1
    totals[3] += score.state == "ok" and score.value is None
    totals[4] += 0.0 if score.value is None else score.value
    totals[5] += score.latency_s


def _function_id(db: sqlite3.Connection, step: int, score: Score) -> int:
    key = (plain_text(score.name), plain_text(score.version), score.weight)
    db.execute("INSERT OR IGNORE INTO functions (name, version, weight, first_step) VALUES (?, ?, ?, ?)", (*key, step))
    row = db.execute("SELECT id FROM functions WHERE name = ? AND version = ? AND weight = ?", key).fetchone()
    return int(row[0])


def _add_to_prompt_epochs(db: sqlite3.Connection, groups: Iterable[Group]) -> None:
    rewards: dict[tuple[int, int], list[float]] = {}
    for group in groups:
        valid = [reward for reward in group.rewards_G if reward is not None]
        rewards.setdefault((group.prompt.example.index, group.epoch), []).extend(valid)
    for (example, epoch), values in rewards.items():
        query = "SELECT num_completions, mean, sum_squares FROM prompt_epochs WHERE example = ? AND epoch = ?"
        start = db.execute(query, (example, epoch)).fetchone() or (0, 0.0, 0.0)
        _write_prompt_epoch(db, example, epoch, start, values)


def _recompute_prompt_epoch(db: sqlite3.Connection, example: int, epoch: int) -> None:
    """From the rows that are left, in their order: the same floating-point sums as if nothing had been deleted."""
    db.execute("DELETE FROM prompt_epochs WHERE example = ? AND epoch = ?", (example, epoch))
    query = "SELECT reward FROM completions WHERE example = ? AND epoch = ? AND reward IS NOT NULL ORDER BY id"
    values = [reward for (reward,) in db.execute(query, (example, epoch))]
    _write_prompt_epoch(db, example, epoch, (0, 0.0, 0.0), values)


def _write_prompt_epoch(
    db: sqlite3.Connection, example: int, epoch: int, start: tuple[int, float, float], values: Iterable[float]
) -> None:
    """Welford's running mean and sum of squared deviations (Technometrics 4, 1962)."""
    num, mean, sum_squares = start
    for value in values:
        num += 1
        delta = value - mean
        mean += delta / num
        sum_squares += delta * (value - mean)
    if num:
        row = (example, epoch, num, mean, sum_squares)
        db.execute("INSERT OR REPLACE INTO prompt_epochs VALUES (?, ?, ?, ?, ?)", row)


def _json(values: Mapping[str, Any]) -> str:
    """Sorted and strict: a number that is not finite is a bug of the caller."""
    return json.dumps(dict(values), sort_keys=True, allow_nan=False)
