"""Where each type of grader is judged: in a worker by our code, by the user's Python, elsewhere, or in parts."""

from __future__ import annotations

from reinforge.errors import RewardError
from reinforge.grading import builtin
from reinforge.grading.language.joining import JOINED
from reinforge.grading.language.local_grader import LEAVES
from reinforge.grading.language.spec import PythonGrader, walk
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.spec_judges import JudgeNode

FACTORIES: dict[str, str] = {
    "code_tests": "reinforge.grading.code_scorer:code_scorer",
    "fluency": "reinforge.grading.model_scorer:model_scorer",
    "similarity": "reinforge.grading.model_scorer:model_scorer",
}
"""Type -> `module:function` of what starts its scorer (start.Factory): for types judged elsewhere than in a worker."""


def is_local(node: GraderNode) -> bool:
    """Whether our code in a worker can judge by all of it, without Python of the user, models or other services."""
    return all(_is_local_type(part.type) or part.type in JOINED for _, part in walk(node))


def local_leaves(node: GraderNode) -> list[GraderNode]:
    """The parts that our code judges in a worker."""
    return [part for _, part in walk(node) if _is_local_type(part.type)]


def check_places(node: GraderNode, where: str) -> None:
    """RewardError when there is nothing here that judges by some part."""
    for path, part in walk(node):
        known = _is_local_type(part.type) or part.type in JOINED or part.type in FACTORIES
        if not known and not isinstance(part, PythonGrader | JudgeNode):
            place = ".".join((where, *path))
            raise RewardError(f"{place}: there is nothing here yet that judges by {part.type}.")


def _is_local_type(kind: str) -> bool:
    return kind not in FACTORIES and kind not in JOINED and (kind in LEAVES or kind in builtin.BUILTINS)
