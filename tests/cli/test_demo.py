"""What `reinforge demo` says at the end."""

from pathlib import Path

from reinforge.cli.train import MAX_COLUMN_LINES, _demo_text
from reinforge.demo import Comparison, DemoResult
from reinforge.insight.evaluation import Evaluation


def test_the_demo_ends_with_completions_side_by_side_and_the_figures():
    def evaluation(pass_at_1: float) -> Evaluation:
        return Evaluation(pass_at_1, (pass_at_1 - 0.1, pass_at_1 + 0.1), 0.5, {}, {}, 0.0, 0.25, None, 8, 32)

    result = DemoResult(
        run=Path("runs/demo"),
        steps=60,
        seconds=121.4,
        before=evaluation(0.2),
        after=evaluation(0.55),
        outcomes_before={"correct": 0.2, "gave_up": 0.8},
        outcomes_after={"correct": 0.55, "gave_up": 0.45},
        tokens_before=40.4,
        tokens_after=99.6,
        comparisons=[
            Comparison("numbers 9 1 5 target 15", "9+5=14\x1b[2J\ngive up", "9+5=14,1+14=15!" * 200, 0.0, 1.1)
        ],
        picture=Path("runs/demo/curves.png"),
    )
    lines = _demo_text(result).splitlines()
    assert lines[0] == "numbers 9 1 5 target 15"
    assert [part.strip() for part in lines[1].split("|")] == ["before: reward 0", "after: reward 1.1"]
    assert lines[2].startswith("9+5=14\\x1b[2J  ")
    assert lines[3].startswith("give up  ")
    assert lines[1 + MAX_COLUMN_LINES].endswith("| ...")
    text = "\n".join(lines)
    assert [line.split() for line in lines if line.startswith(("gave", "tokens"))] == [
        ["gave", "up", "80%", "45%"],
        ["tokens", "40", "100"],
    ]
    assert "pass@1 0.200 -> 0.550 (95 % interval 0.450 .. 0.650; greedy 0.250 -> 0.250), 60 steps in 2:01" in text
    assert "  reinforge chat runs/demo" in lines
