"""Reward functions of the Countdown recipe: they run in a sandboxed worker.

Give ``format_reward`` the weight 0.1 and ``correct_reward`` the weight 0.9: a correct completion then earns 1.0.
"""

import re
from fractions import Fraction
from itertools import permutations

from reinforge.grading.builtin.arithmetic import evaluate

_FORMAT = re.compile(
    r"<think>((?:(?!</?think>|</?answer>).)*)</think>\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.S
)
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.S)
_ALLOWED = re.compile(r"[0-9+\-*/() ]{1,100}")


def format_reward(prompt: str, completion: str, example: dict[str, str]) -> float:
    """1.0 when the completion is one thinking block followed by one answer block and nothing else, otherwise 0.0.

    >>> format_reward("", "<think>1+2=3!</think><answer>1+2</answer>", {})
    1.0
    >>> format_reward("", "<think>1+2=3!</think><answer>1+2", {})  # cut off
    0.0
    """
    return 1.0 if _FORMAT.fullmatch(completion) else 0.0


def correct_reward(prompt: str, completion: str, example: dict[str, str]) -> float:
    """1.0 when the answer uses each of ``example["numbers"]`` once and reaches ``example["target"]``, otherwise 0.0.

    The values of ``example`` are text: ``"9 1 5"`` (or ``"[9, 1, 5]"``) and ``"15"``. Several answers are no answer.

    >>> correct_reward("", "<answer>1+(9+5)</answer>", {"numbers": "9 1 5", "target": "15"})
    1.0
    >>> correct_reward("", "<answer>15</answer>", {"numbers": "9 1 5", "target": "15"})
    0.0
    """
    answers = _ANSWER.findall(completion)
    if len(answers) != 1 or not _ALLOWED.fullmatch(answers[0]):
        return 0.0
    used = sorted(int(number) for number in re.findall("[0-9]+", answers[0]))
    given = sorted(int(number) for number in re.findall("[0-9]+", str(example["numbers"])))
    if used != given:
        return 0.0
    value = evaluate(answers[0])
    return 1.0 if value is not None and abs(value - Fraction(str(example["target"]))) < Fraction(1, 100_000) else 0.0


def gold(example: dict[str, str]) -> str | None:
    """A right completion for a row, for `reinforge rewards test`; None when the target cannot be reached.

    >>> gold({"numbers": "9 1 5", "target": "15"})
    '<think>5+(9+1)!</think><answer>5+(9+1)</answer>'
    """
    numbers = [(Fraction(number), number) for number in re.findall("[0-9]+", str(example["numbers"]))]
    found = _solution(numbers, Fraction(str(example["target"])))
    return None if found is None else f"<think>{found}!</think><answer>{found}</answer>"


def _solution(terms: list[tuple[Fraction, str]], target: Fraction) -> str | None:
    """An expression of all terms that reaches the target: two of them become one until one is left."""
    if len(terms) == 1:
        return terms[0][1].removeprefix("(").removesuffix(")") if terms[0][0] == target else None
    for (i, (a, left)), (j, (b, right)) in permutations(enumerate(terms), 2):
        rest = [term for place, term in enumerate(terms) if place not in (i, j)]
        joined = [(a + b, f"({left}+{right})"), (a - b, f"({left}-{right})"), (a * b, f"({left}*{right})")]
        for term in joined + ([(a / b, f"({left}/{right})")] if b else []):
            found = _solution([*rest, term], target)
            if found is not None:
                return found
    return None
