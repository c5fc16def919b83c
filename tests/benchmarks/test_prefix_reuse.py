"""The benchmark of prefix reuse on little work. Nothing here asserts a speed."""

import pytest

from reinforge.learner import batch
from reinforge.policy import prompt_parts


@pytest.fixture
def reuse(bench, monkeypatch):
    found = bench("prefix_reuse")
    for name, value in {"NUM_PROMPTS": 2, "NUM_GENERATIONS": 2, "OWN_TOKENS": 5, "COMPLETION_TOKENS": 3}.items():
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(found, "TURNS", 2)
    monkeypatch.setattr(found, "ANSWER_TOKENS", 3)
    monkeypatch.setattr(found, "ROLLOUT_SYSTEM_TOKENS", (300,))
    return found


def test_both_ways_draw_the_same_and_are_measured(reuse, tmp_path):
    before = (prompt_parts.MIN_SAVED_TOKENS, batch.MIN_SAVED_TOKENS)
    cases = reuse.cases(reuse.make_policy(tmp_path))
    assert len(cases) == 5
    ways = cases["rollout, system prompt of 300"]
    drawn = {name: sorted((place, c.generation, c.token_ids) for place, c in way()) for name, way in ways.items()}
    assert drawn["apart_s"] == drawn["reuse_s"]
    for name in ("update, system prompt of 300", "chat of 2 turns, one token each"):
        assert set(reuse.measure(cases[name], 1)) == {"apart_s", "reuse_s", "ratio"}
    assert before == (prompt_parts.MIN_SAVED_TOKENS, batch.MIN_SAVED_TOKENS)
