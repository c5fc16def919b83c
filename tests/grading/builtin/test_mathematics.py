"""The time limit of math_equal: it rings in time, leaves nothing behind, and is not needed off the main thread."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from reinforge.grading.builtin import math_equal
from reinforge.grading.builtin.mathematics import OutOfTime, alarm

SLOW = "$(x+1)^{5000}$"


@pytest.fixture
def another_timer():
    """One of ours that runs already, as in an unguarded worker."""
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("answer", ["so 72", SLOW])
def test_a_timer_that_ran_before_goes_on(another_timer, answer: str):
    result = math_equal(input=answer, reference=72, timeout_s=0.3)
    assert result.score == (answer != SLOW)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 900 < left < 1000
    assert interval == 0
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN


def test_code_that_swallows_the_alarm_hears_it_again():
    rung = 0
    with pytest.raises(OutOfTime), alarm(0.01):
        while rung < 3:
            try:
                while True:
                    pass
            except OutOfTime:
                rung += 1
        while True:
            pass
    assert rung == 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


class SlowToDie:
    """Rings while it is deleted, where Python drops every exception."""

    def __init__(self, error: BaseException | None = None):
        self.error = error

    def __del__(self):
        if self.error:
            raise self.error
        while True:
            pass


def test_an_alarm_that_python_drops_rings_again_and_is_not_reported(monkeypatch: pytest.MonkeyPatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    hook = sys.unraisablehook
    deleted = False
    with pytest.raises(OutOfTime), alarm(0.01):
        SlowToDie()
        deleted = True
        while True:
            pass
    assert deleted
    assert reported == []
    assert sys.unraisablehook == hook


def test_other_dropped_exceptions_are_still_reported(monkeypatch: pytest.MonkeyPatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))
    with alarm(10.0):
        SlowToDie(ValueError("lost"))
    assert reported == [ValueError]


def test_other_threads_work_without_an_alarm():
    results = []
    thread = threading.Thread(target=lambda: results.append(math_equal(input="1/2", reference=0.5)))
    thread.start()
    thread.join()
    assert [result.score for result in results] == [1.0]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("1,234", 1234), ("$1,234$", "1234"), ("0.333333", "1/3"), ("\\frac12", "0.5"), ("x = 5", "5"), ("50\\%", "0.5")],
)
def test_notations_of_one_answer_are_equal(answer: str, reference: object):
    assert math_equal(input=f"<answer>{answer}</answer>", reference=reference, tag="answer").score == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"), [("1,234", 1.234), ("0.3333", "1/3"), ("-72", 72), ("x+1", "x-1"), ("(1,2)", "(2,1)")]
)
def test_different_answers_are_not(answer: str, reference: object):
    assert math_equal(input=f"<answer>{answer}</answer>", reference=reference, tag="answer").score == 0.0
