"""Every built-in gives what the requirement implies, on the cases of cases.py."""

from __future__ import annotations

import math

import pytest
from grading.builtin.cases import USES, Case, Use

from reinforge.grading.builtin import BUILTINS, COMPOSITES, ELSEWHERE, Result, find

EVERY = [(use, case) for use in USES for case in use.cases]


@pytest.mark.parametrize(("use", "case"), EVERY, ids=[f"{use.grader}: {case.what}" for use, case in EVERY])
def test_a_seed_grader_gives_the_value_its_text_implies(use: Use, case: Case):
    arguments = {**use.options, **case.arguments}
    if isinstance(case.score, str):
        with pytest.raises(ValueError, match=case.score):
            find(use.grader)(**arguments)
        return
    result = find(use.grader)(**arguments)
    assert float(result) == pytest.approx(case.score, abs=1e-12)
    assert math.isfinite(float(result))
    if float(result) == 0.0 and use.grader not in COMPOSITES:
        assert result.reason


def test_every_use_has_six_cases_and_every_builtin_a_use():
    assert [use.title for use in USES if len(use.cases) < 6] == []
    assert {use.grader for use in USES} == set(BUILTINS) - set(ELSEWHERE)


def test_names_import_from_the_package_and_others_do_not():
    import reinforge.grading.builtin as package

    for name in BUILTINS:
        assert getattr(package, name) is find(name)
        assert name in package.__all__ or name in ELSEWHERE
    assert package.Result is Result
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing
    with pytest.raises(KeyError):
        find("nothing")
