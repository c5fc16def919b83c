"""What is shown while a run goes on."""

import contextlib
import io
import json

import pytest

from reinforge.cli import live
from reinforge.cli.live import JsonLines, LiveTable, PlainLines, open_display
from reinforge.insight.evaluation import Evaluation
from reinforge.types import Completion, Example, Grade, Group, Prompt, Score

METRICS = {
    "reward/mean": 0.4128,
    "reward/right/mean": 0.25,
    "reward/[bold]/mean": 0.5,
    "reward/right/errors": 0.0,
    "reward/[bold]/errors": 0.0,
    "reward/right/recall/mean": 0.125,
    "reward/right/std": 9.0,
    "reward/std": 0.21,
    "group/zero_variance_share": 0.125,
    "completion/tokens_mean": 87.4,
    "policy/kl": 0.00312,
    "speed/tokens_per_s": 412.0,
}
EVALUATION = Evaluation(0.5, (0.25, 0.75), 0.4, {}, {}, 0.0, 0.625, None, 8, 32)


def groups_of(text: str, *, masked: bool = False) -> tuple[Group, ...]:
    scores = (Score("[bold]", "v", None, state="masked" if masked else "ok"), Score("right", "v", 0.5))
    completion = Completion(0, (1,), text, "stop", (-1.0,), (-1.0,), 0)
    prompt = Prompt(Example(7, "p"), "system\none\ntwo\n\x1b[1mthink:\n", (1,))
    return (Group(prompt, 0, (completion,), (Grade(scores),)),)


def test_a_line_a_step_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    display = open_display(200)
    assert isinstance(display, PlainLines)
    display.step(12, METRICS, groups_of("3\n4 \x1b[2J"))
    display.note("checkpoint \x1b[1m")
    display.evaluation(20, EVALUATION, ())
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 12/200  reward 0.413  right 0.250  [bold] 0.500  std 0.210  zero-var 12%  tokens 87  KL 0.0031  tok/s 412"
        "  left 0:00",
        "  step 12, example 7: reward 0.5 ([bold] -, right 0.5)",
        "    one",
        "    two",
        "    \\x1b[1mthink: ▸ 3",
        "    4 \\x1b[2J",
        "checkpoint \\x1b[1m",
        "held-out at step 20: pass@1 0.500 (95 % interval 0.250 .. 0.750), greedy 0.625, 8 prompts x 4",
    ]


def test_json_lines_are_the_only_words_on_stdout(capsys: pytest.CaptureFixture[str]):
    display = open_display(2, as_json=True)
    assert isinstance(display, JsonLines)
    display.step(1, METRICS, groups_of("x"))
    display.note("hm")
    display.evaluation(2, EVALUATION, ())
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["step", "note", "evaluation"]
    assert json.loads(out.splitlines()[0])["metrics"] == METRICS


def test_failed_calls_show_even_if_the_means_hide_them(capsys: pytest.CaptureFixture[str]):
    display = PlainLines(200)
    display.step(1, {**METRICS, "reward/error_share": 0.003}, ())
    assert "right 0.250  [bold] 0.500  errors 0.3%  std 0.210" in capsys.readouterr().err
    display.step(2, {**METRICS, "reward/error_share": 0.0}, ())
    assert "errors" not in capsys.readouterr().err


def test_time_left_is_the_steps_left_times_the_mean_of_the_latest(capsys: pytest.CaptureFixture[str]):
    display = PlainLines(10)
    for step, step_s in ((1, 2.5), (2, 0.5)):
        display.step(step, {**METRICS, "time/step_s": step_s, "time/record_s": 0.5}, ())
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0:27", "0:16"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal 160 columns wide, to be stderr."""
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "160"), ("LINES", "50")):
        monkeypatch.setenv(name, value)
    return Terminal()


def test_a_terminal_gets_a_table_in_which_model_text_is_only_text(terminal, capsys: pytest.CaptureFixture[str]):
    with contextlib.redirect_stderr(terminal):
        display = open_display(200)
        assert isinstance(display, LiveTable)
        display.step(1, METRICS, groups_of("[red]not red[/red] \x1b]0;title\x07 [/]"))
        display.evaluation(2, EVALUATION, ())
        display.note("[blink]x")
        display.close()
        display.close()
    assert capsys.readouterr().out == ""
    shown = terminal.getvalue()
    for expected in (
        "1/200",
        "0.413",
        "[bold]",
        "[red]not red[/red] \\x1b]0;title\\x07 [/]",
        "[blink]x",
        "[bold] -",
        "pass@1 0.500",
    ):
        assert expected in shown
    assert "\x1b]0;" not in shown


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_a_terminal_that_asks_for_plain_text_gets_it(terminal, monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "1")
    with contextlib.redirect_stderr(terminal):
        assert isinstance(open_display(2), PlainLines)


def test_a_closed_pipe_ends_the_showing_but_not_the_run(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def closed(*args, **_kwargs):
        tried.append(args)
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    for display in (PlainLines(2), JsonLines()):
        display.step(1, METRICS, ())
        display.note("still here")
    assert len(tried) == 4


def test_completions_show_now_and_then_whatever_their_reward(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shower = live.Shower()
    titles = []
    for step, at in enumerate((100.0, 100.0 + live.COMPLETION_EVERY_S - 1, 100.0 + live.COMPLETION_EVERY_S)):
        now[0] = at
        titles.append(shower.pick(step, groups_of("x", masked=step == 2)))
    assert [shown and shown.title for shown in titles] == [
        "step 0, example 7: reward 0.5 ([bold] -, right 0.5)",
        None,
        "step 2, example 7: reward - ([bold] -, right 0.5)",
    ]
