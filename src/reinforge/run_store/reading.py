"""Questions to a run's rows. All answer in milliseconds at 100,000 completions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from reinforge.run_store.packing import unpack_text, unpack_tokens
from reinforge.run_store.records import (
    CompletionRow,
    EventRow,
    FunctionRow,
    LogRow,
    PromptEpochRow,
    PromptRow,
    RewardUpdateRow,
    ScoreRow,
    StepRow,
    TokenRow,
)
from reinforge.types import ScoreState


class RowReader:
    """What can be asked of a run's database."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def last_step(self) -> int:
        """The newest recorded step; 0 before the first."""
        (step,) = self._db.execute("SELECT coalesce(max(step), 0) FROM steps").fetchone()
        return int(step)

    def steps(self, first: int = 1, last: int | None = None) -> list[StepRow]:
        """Steps `first` to `last` (inclusive), in order."""
        query = (
            "SELECT step, metrics, times, state_hash, recorded_at, num_completions FROM steps"
            " WHERE step >= ? AND step <= ? ORDER BY step"
        )
        return [
            StepRow(step, json.loads(metrics) | json.loads(times), state_hash, at, num_completions)
            for step, metrics, times, state_hash, at, num_completions in self._db.execute(
                query, (first, _MAX_STEP if last is None else last)
            )
        ]

    def completions(
        self, step: int | None = None, example: int | None = None, limit: int = 100, after: int = 0
    ) -> list[CompletionRow]:
        """A page of completions in the order they were stored, of one step or one example if given. The next page is
        `after=page[-1].id`."""
        # The + keeps SQLite from walking the example's index when the step's is the far shorter list.
        conditions, values = ["c.id > ?"], [after]
        if step is not None:
            conditions.append("c.step = ?")
            values.append(step)
        if example is not None:
            conditions.append("c.example = ?" if step is None else "+c.example = ?")
            values.append(example)
        query = (
            "SELECT c.id, step, epoch, place, example, generation, c.text, finish_reason, p.num_tokens, c.num_tokens,"
            " policy_version, reward, advantage, state FROM completions c JOIN prompts p USING (example)"
            f" WHERE {' AND '.join(conditions)} ORDER BY c.id LIMIT ?"
        )
        found = self._db.execute(query, (*values, limit))
        return [CompletionRow(*_with(row, {6: unpack_text})) for row in found]

    def tokens(self, completion: int) -> TokenRow | None:
        """Token ids and logprobs of one completion; None when they were dropped with age."""
        row = self._db.execute("SELECT packed FROM tokens WHERE completion = ?", (completion,)).fetchone()
        return None if row is None else TokenRow(*unpack_tokens(row[0]))

    def scores(self, completions: Iterable[int]) -> dict[int, list[ScoreRow]]:
        """Every score of these completions (ids), in the order the functions are listed in."""
        found: dict[int, list[ScoreRow]] = {completion: [] for completion in completions}
        query = (
            "SELECT completion, name, version, weight, value, state, kind, message, prints, latency_s,"
            " stand_in, coalesce(metrics, '{}') FROM scores s"
            " JOIN functions f ON f.id = s.function WHERE completion IN (%s) ORDER BY completion, position"
        )
        for ids in _chunks(list(found), 500):
            for row in self._db.execute(query % ",".join("?" * len(ids)), ids):
                found[row[0]].append(ScoreRow(*_with(row, {6: str, 7: str, 8: unpack_text, 11: json.loads})))
        return found

    def score_log(
        self,
        functions: Sequence[str] = (),
        versions: Sequence[str] = (),
        first: int = 1,
        last: int | None = None,
        state: ScoreState | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[LogRow]:
        """A page of scores of steps `first` to `last` in the order they were stored: about `limit`, all of a
        completion's. No names mean every function. The next page is `after=page[-1].completion`."""
        # Ids grow with steps, so that a range of steps is one of ids, and a page costs no sorting of all that follow.
        conditions = [
            "c.id > ?",
            "c.id >= (SELECT id FROM completions WHERE step >= ? ORDER BY step, id LIMIT 1)",
            "c.id <= (SELECT id FROM completions WHERE step <= ? ORDER BY step DESC, id DESC LIMIT 1)",
        ]
        values: list[object] = [after, first, _MAX_STEP if last is None else last]
        for column, wanted in (("name", functions), ("version", versions), ("s.state", [state] if state else [])):
            if wanted:
                conditions.append(f"{column} IN ({','.join('?' * len(wanted))})")
                values += wanted
        query = (
            "SELECT c.id, step, epoch, example, generation, name, version, weight, value, s.state, kind, message,"
            " prints, latency_s, stand_in, coalesce(metrics, '{}') FROM completions c"
            " CROSS JOIN scores s ON s.completion = c.id"
            f" CROSS JOIN functions f ON f.id = s.function WHERE {' AND '.join(conditions)} ORDER BY c.id, position"
        )
        found = _whole(self._db.execute(query, values), limit)
        return [LogRow(*_with(row, {10: str, 11: str, 12: unpack_text, 15: json.loads})) for row in found]

    def last_completion(self) -> int:
        """The highest id of a completion; 0 before the first."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM completions").fetchone()[0])

    def functions(self) -> list[FunctionRow]:
        """Every version of every reward function, with counts over all steps."""
        query = (
            "SELECT name, version, weight, min(step), max(step), sum(num_ok), sum(num_error), sum(num_masked),"
            " sum(num_inapplicable), sum(sum_value) / nullif(sum(num_ok) - sum(num_inapplicable), 0),"
            " sum(sum_latency_s) / (sum(num_ok) + sum(num_error) + sum(num_masked))"
            " FROM function_steps t JOIN functions f ON f.id = t.function GROUP BY f.id ORDER BY f.id"
        )
        return [FunctionRow(*row) for row in self._db.execute(query)]

    def reward_updates(self) -> list[RewardUpdateRow]:
        """Every change of the reward functions, in the order they took effect."""
        query = "SELECT request, step, functions, message, shift FROM reward_updates ORDER BY id"
        return [
            RewardUpdateRow(request, step, tuple(json.loads(functions)), message, shift and json.loads(shift))
            for request, step, functions, message, shift in self._db.execute(query)
        ]

    def prompts(self, examples: Sequence[int]) -> dict[int, PromptRow]:
        """What the model was given for these examples; those never drawn are left out."""
        found: dict[int, PromptRow] = {}
        for ids in _chunks(list(examples), 500):
            query = f"SELECT example, text, num_tokens FROM prompts WHERE example IN ({','.join('?' * len(ids))})"
            for example, text, num_tokens in self._db.execute(query, ids):
                found[example] = PromptRow(example, unpack_text(text), num_tokens)
        return found

    def prompt_epochs(self, example: int | None = None) -> list[PromptEpochRow]:
        """How each example did in each epoch, or one example in each."""
        query = (
            "SELECT example, epoch, num_completions, mean,"
            " CASE num_completions WHEN 1 THEN 0.0 ELSE sum_squares / (num_completions - 1) END"
            f" FROM prompt_epochs {'' if example is None else 'WHERE example = ?'} ORDER BY example, epoch"
        )
        return [PromptEpochRow(*row) for row in self._db.execute(query, () if example is None else (example,))]

    def events(self, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """A page of events in the order they happened; the next page is `after=page[-1].id`."""
        query = "SELECT id, step, at, kind, level, message, data FROM events WHERE id > ? ORDER BY id LIMIT ?"
        return [EventRow(*_with(row, {6: json.loads})) for row in self._db.execute(query, (after, limit))]


def _with(row: tuple[Any, ...], readers: Mapping[int, Callable[[Any], Any]]) -> list[Any]:
    """A row with some columns decoded; SQL's NULL in these is an empty text."""
    values = list(row)
    for place, read in readers.items():
        values[place] = "" if values[place] is None else read(values[place])
    return values


def _whole(rows: Iterable[tuple[Any, ...]], limit: int) -> Iterator[tuple[Any, ...]]:
    """About `limit` rows, but never a part of those that share their first column.

    >>> list(_whole([(1, "a"), (1, "b"), (2, "c")], limit=1))
    [(1, 'a'), (1, 'b')]
    """
    last = None
    for num, row in enumerate(rows):
        if num >= limit and row[0] != last:
            return
        last = row[0]
        yield row


def _chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


_MAX_STEP = 2**62
