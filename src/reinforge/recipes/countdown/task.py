"""The Countdown task: its problems and their splits, the noisy demonstrator, and what became of a completion.

Combine three numbers (1..9), each used once, with + - * to reach a target (1..30). Subtraction never goes below zero
and no value passes 99. A try is two steps and a verdict: ``9*5=45,1+45=46?`` missed, ``9+5=14,1+14=15!`` hit.
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from reinforge.grading.builtin.arithmetic import evaluate
from reinforge.recipes.countdown.rewards import correct_reward, format_reward

MAX_NUMBER = 9
MAX_TARGET = 30
MAX_VALUE = 99
SPLIT_SEED = 20
# Distinct problems of each split; the warm start has all the others.
SPLIT_SIZES = {"heldout": 250, "choice": 200, "train": 450}

Numbers = tuple[int, int, int]
Split = Literal["warm_start", "train", "choice", "heldout"]
Outcome = Literal["correct", "gave_up", "false_hit", "cut_off", "true_hit_wrong_answer"]
OUTCOMES: tuple[Outcome, ...] = ("correct", "gave_up", "false_hit", "cut_off", "true_hit_wrong_answer")


@dataclass(frozen=True, slots=True)
class Problem:
    """Three numbers in the order shown, and the target. Problems that differ only in that order count as one."""

    numbers: Numbers
    target: int

    @property
    def prompt(self) -> str:
        """The user's message.

        >>> Problem((9, 1, 5), 15).prompt
        'numbers 9 1 5 target 15'
        """
        return f"numbers {' '.join(map(str, self.numbers))} target {self.target}"


@dataclass(frozen=True, slots=True)
class Try:
    """One way to combine the three numbers: its ``steps`` as thought, its ``value``, its ``expression`` as answered."""

    steps: str
    value: int
    expression: str


@cache
def tries(numbers: Numbers) -> tuple[Try, ...]:
    """Every distinct try for ``numbers`` (about 25).

    >>> tries((9, 1, 5))[0]
    Try(steps='9+1=10,5+10=15', value=15, expression='5+(9+1)')
    """
    found: dict[str, Try] = {}
    for first, second in ((0, 1), (0, 2), (1, 2)):
        rest = numbers[3 - first - second]
        for inner, outer in itertools.product("+-*", repeat=2):
            left, right, middle = _apply(inner, numbers[first], numbers[second])
            start, end, value = _apply(outer, rest, middle)
            steps = f"{left}{inner}{right}={middle},{start}{outer}{end}={value}"
            bracket = f"({left}{inner}{right})"
            expression = f"{rest}{outer}{bracket}" if (start, end) == (rest, middle) else f"{bracket}{outer}{rest}"
            if value <= MAX_VALUE:
                found.setdefault(steps, Try(steps, value, expression))
    return tuple(found.values())


def _apply(operator: str, left: int, right: int) -> tuple[int, int, int]:
    """The operands in the order written (a subtraction starts with the larger) and the result."""
    if operator == "-":
        left, right = max(left, right), min(left, right)
    return left, right, {"+": left + right, "-": left - right, "*": left * right}[operator]


@cache
def split(name: Split) -> tuple[Problem, ...]:
    """The solvable problems of one split, numbers in rising order. No problem is in two splits."""
    every = [
        Problem(numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, MAX_NUMBER + 1), 3)
        for target in sorted({one.value for one in tries(numbers)} & set(range(1, MAX_TARGET + 1)))
    ]
    random.Random(SPLIT_SEED).shuffle(every)
    begin = 0
    for other, size in SPLIT_SIZES.items():
        if other == name:
            return tuple(every[begin : begin + size])
        begin += size
    return tuple(every[begin:])


def shuffled(problem: Problem, rng: random.Random) -> Problem:
    """The same problem, its numbers shown in a random order."""
    first, second, third = rng.sample(problem.numbers, 3)
    return Problem((first, second, third), problem.target)


@dataclass(frozen=True, slots=True)
class Style:
    """How the demonstrator searches."""

    ordered: bool
    """Tries follow the order of ``tries`` from a random one on; otherwise they come in random order."""
    hit: float
    """Probability that the next try is a solution outright (random order only)."""
    give_up: float
    """Probability of stopping after a miss, to answer with the failed try."""
    persistent: float
    """Probability, drawn once for a demonstration, of not giving up before its last try."""
    max_tries: int
    """The longest demonstration."""


# First the skill: random tries with many hits teach the verdict, which is learned last, several times sooner.
SKILL = Style(ordered=False, hit=0.4, give_up=0.2, persistent=0.2, max_tries=15)
# Then the habit. The order lets a model know its next try from the last one alone: with random tries one in six was a
# repetition after reinforcement learning. Giving up is the noise that reinforcement learning is there to remove.
HABIT = Style(ordered=True, hit=0.0, give_up=0.43, persistent=0.08, max_tries=22)


def demonstrate(problem: Problem, rng: random.Random, style: Style = HABIT) -> str:
    """One demonstration: tries, none twice, until one hits or the demonstrator gives up."""
    untried = list(tries(problem.numbers))
    if style.ordered:
        start = rng.randrange(len(untried))
        untried = untried[start:] + untried[:start]
    else:
        rng.shuffle(untried)
    goes_on = rng.random() < style.persistent
    thoughts = []
    while True:
        solutions = [one for one in untried if one.value == problem.target]
        one = solutions[0] if solutions and rng.random() < style.hit else untried[0]
        untried.remove(one)
        hit = one.value == problem.target
        thoughts.append(one.steps + ("!" if hit else "?"))
        spent = not untried or len(thoughts) == style.max_tries
        if hit or spent or (not goes_on and rng.random() < style.give_up):
            return f"<think>{';'.join(thoughts)}</think><answer>{one.expression}</answer>"


def outcome(completion: str, numbers: Numbers, target: int) -> Outcome:
    """What became of a completion; a completion without both blocks is ``cut_off``, whatever broke it.

    >>> outcome("<think>9*5=45,1+45=46?</think><answer>1+(9*5)</answer>", (9, 1, 5), 15)
    'gave_up'
    """
    example = {"numbers": " ".join(map(str, numbers)), "target": str(target)}
    if not format_reward("", completion, example):
        return "cut_off"
    if correct_reward("", completion, example):
        return "correct"
    verdicts = claims(completion, numbers, target)
    if not verdicts or not verdicts[-1].claimed:
        return "gave_up"
    return "true_hit_wrong_answer" if verdicts[-1].true else "false_hit"


@dataclass(frozen=True, slots=True)
class Claim:
    """One try as a model wrote it: whether it claimed a hit, and whether it truly was one."""

    steps: str
    claimed: bool
    true: bool


_TRY = re.compile(r"([0-9+\-*=,]+)([?!])")
_STEPS = re.compile(r"([0-9]+)([+\-*])([0-9]+)=([0-9]+),([0-9]+)([+\-*])([0-9]+)=([0-9]+)")


def claims(completion: str, numbers: Numbers, target: int) -> list[Claim]:
    """Every try in the thinking part; true when both steps are right, use each number once and reach the target."""
    thinking = completion.split("</think>")[0]
    return [Claim(steps, mark == "!", _reaches(steps, numbers, target)) for steps, mark in _TRY.findall(thinking)]


def _reaches(steps: str, numbers: Numbers, target: int) -> bool:
    """Whether the two steps are sound arithmetic on exactly ``numbers`` and end at ``target``."""
    match = _STEPS.fullmatch(steps)
    if match is None:
        return False
    first, _, second, middle, left, _, right, value = match.groups()
    inner, outer = steps.split(",")
    sound = all(evaluate(step.split("=")[0]) == int(step.split("=")[1]) for step in (inner, outer))
    used = [int(first), int(second), int(left), int(right)]
    if not sound or int(middle) not in used[2:]:
        return False
    used.remove(int(middle))
    return sorted(used) == sorted(numbers) and int(value) == target
