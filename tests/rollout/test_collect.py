"""From completions to graded groups: judging begins when a completion ends, and no order changes a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeGrader, FakeSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import wait_until

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.calls import Case
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.replay import ReplayingGrader
from reinforge.grading.reward_function import load_reward_functions
from reinforge.grading.scorers import FunctionWorkers
from reinforge.rollout.collect import collect
from reinforge.types import Completion, Example, Group, Prompt, SampleRequest, Score

SOURCE = """
import json, os, time

def alone(prompt, completion, example):
    time.sleep(os.urandom(1)[0] / 255 * 0.002)
    print(prompt, completion)
    if completion.endswith("3"): raise ValueError(completion)
    return int(example["weight"]) * len(completion)

def ranked(prompts, completions, completion_ids, **columns):
    order = sorted(zip(completions, map(tuple, completion_ids)))
    print(len(completions))
    return [order.index((c, tuple(i))) / len(order) for c, i in zip(completions, completion_ids)]

def grade(sample, item):
    cut_off = sample["choices"][0]["finish_reason"] == "length"
    return {"score": sample["output_text"].count("t"), "metrics": {"cut off": cut_off}}
"""
NAMES = ("alone", "ranked", "grade")


def requests_of(sizes: Sequence[int]) -> list[SampleRequest]:
    return [
        SampleRequest(Prompt(Example(i, f"prompt {i}", {"weight": i + 1}), f"<prompt {i}>", (i,)), size, (0, 0, i))
        for i, size in enumerate(sizes)
    ]


class ShuffledSampler(FakeSampler):
    """Completions end in the order it is given, of (place of the request, generation)."""

    def __init__(self, order: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.order = order

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        for place, generation in self.order:
            yield place, self.completion(requests[place], generation)


@st.composite
def endings(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Sizes of groups, and an order in which their completions end."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return sizes, draw(st.permutations([(place, g) for place, size in enumerate(sizes) for g in range(size)]))


def known(groups: Sequence[Group]) -> list[object]:
    """All of the groups but wall time."""
    return [
        (
            group.prompt,
            group.completions,
            [
                (s.version, s.value, s.state, s.kind, s.message, s.prints, s.metrics)
                for grade in group.grades
                for s in grade.scores
            ],
        )
        for group in groups
    ]


def in_order(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return [(place, generation) for place, size in enumerate(sizes) for generation in range(size)]


@given(endings())
def test_no_order_of_endings_changes_a_group(drawn):
    sizes, order = drawn
    requests, epochs = requests_of(sizes), list(range(len(sizes)))
    straight = collect(requests, epochs, ShuffledSampler(in_order(sizes)), FakeGrader()).groups
    assert collect(requests, epochs, ShuffledSampler(order), FakeGrader()).groups == straight
    assert [group.epoch for group in straight] == epochs
    assert [[c.generation for c in group.completions] for group in straight] == [list(range(size)) for size in sizes]


@pytest.fixture(scope="module")
def graders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RewardFunctionGrader]]:
    """Functions of every form on real workers: one each; three each; three each of pure functions."""
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(SOURCE)
    functions = load_reward_functions({name: f"{file}:{name}" for name in NAMES}, {}, file.parent)
    pure = {name: RewardFunctionSettings(pure=True) for name in ("alone", "grade")}
    made = [
        RewardFunctionGrader(functions),
        RewardFunctionGrader(functions, RewardFunctionsRuntimeConfig(workers=3)),
        RewardFunctionGrader(functions, RewardFunctionsRuntimeConfig(workers=3), pure),
    ]
    yield made
    for grader in made:
        grader.close()


@given(drawn=endings())
@settings(max_examples=25)
def test_neither_order_nor_time_changes_what_real_workers_say(graders, drawn):
    sizes, order = drawn
    requests, epochs = requests_of(sizes), [0] * len(sizes)
    straight = collect(requests, epochs, ShuffledSampler(in_order(sizes)), graders[0]).groups
    for group in straight:
        ranks = [grade.scores[1].value for grade in group.grades]
        assert len(set(ranks)) == len({(c.text, c.token_ids) for c in group.completions})  # it saw the whole group
        assert group.grades[0].scores[1].prints == f"{len(ranks)}\n"
    for grader in graders:
        assert known(collect(requests, epochs, ShuffledSampler(order), grader).groups) == known(straight)


def test_a_group_judged_in_two_parts_has_the_scores_of_each_at_its_place(graders):
    (request,) = requests_of([5])
    whole = collect([request], [0], FakeSampler(), graders[0]).groups[0]
    rest = replace(request, num_generations=3, first_generation=2)
    for grader in (graders[0], ReplayingGrader(graders[0], {})):
        part = collect([rest], [0], FakeSampler(), grader).groups[0]
        assert part.completions == whole.completions[2:]
        for judged, at_once in zip(part.grades, whole.grades[2:], strict=True):
            assert (judged.scores[0].value, judged.scores[2].value) == (
                at_once.scores[0].value,
                at_once.scores[2].value,
            )
            assert judged.scores[1].prints in ("3\n", "")  # what judges a group saw this part


def test_judging_begins_when_a_completion_ends_and_a_group_is_judged_at_once(tmp_path: Path, monkeypatch):
    """The first completion is judged by two functions at once while the sampler has not gone on to the second."""
    monkeypatch.setenv("REINFORGE_SANDBOX", "plain")  # only there a function can say what it does as it does it
    source = f"""
import os
def say(text):
    open({str(tmp_path)!r} + "/" + text, "w").close()
def one(prompt, completion, example): say("one " + completion)
def two(sample, item): say("two " + sample["output_text"])
def group(completions, **columns):
    say("group of " + str(len(completions)))
    return [1.0] * len(completions)
"""
    (tmp_path / "rewards.py").write_text(source.replace("def two(", "def grade("))
    functions = {"one": "rewards.py:one", "two": "rewards.py", "group": "rewards.py:group"}
    seen: list[bool] = []

    class WaitingSampler(ShuffledSampler):
        def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
            for place, completion in super().sample(requests):
                yield place, completion
                wanted = {f"{name} {completion.text}" for name in ("one", "two")}
                seen.append(wait_until(lambda wanted=wanted: wanted <= set(files()), 30.0))
                assert ("group of 2" in files()) <= (len(seen) == 2)

    def files() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    with closing(RewardFunctionGrader(load_reward_functions(functions, {}, tmp_path))) as grader:
        collect(requests_of([2]), [0], WaitingSampler([(0, 1), (0, 0)]), grader)
    assert seen == [True, True]
    assert "group of 2" in files()


def test_what_waits_goes_out_in_shares(tmp_path: Path):
    """Completions of one prompt that wait cost one message, not one each; and no worker takes all that waits."""
    (tmp_path / "rewards.py").write_text("import time\ndef f(prompt, completion, example): time.sleep(0.01)\n")
    (function,) = load_reward_functions({"f": "rewards.py:f"}, {}, tmp_path)
    shares: list[int] = []

    class Counting(FunctionWorkers):
        def _score(self, case: Case) -> list[Score]:
            shares.append(len(case.texts))
            return super()._score(case)

    with closing(Counting(function, RewardFunctionsRuntimeConfig(workers=2))) as scorer:
        example = Example(0, "Hi")
        futures = [scorer.submit(Case(example, "Hi", (str(i),), ((),))) for i in range(16)]
        assert [len(future.result(60)) for future in futures] == [1] * 16
    assert sum(shares) == 16
    assert max(shares) <= 8
    assert len(shares) < 16
