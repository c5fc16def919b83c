"""`reinforge runs plot` and the picture itself."""

import shutil
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.plot import _draw_heldout, _finish

figure = pytest.importorskip("matplotlib.figure")


def test_a_run_is_drawn_into_its_folder_or_where_one_says(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "runs" / "copy"
    shutil.copytree(trained / "runs" / "first", copy)
    assert reinforge(["runs", "plot", "copy", "--runs-dir", str(copy.parent)]) == 0
    assert capsys.readouterr().out == f"{copy / 'curves.png'}\n"
    assert (copy / "curves.png").read_bytes().startswith(b"\x89PNG")
    target = tmp_path / "picture.svg"
    assert reinforge(["runs", "plot", str(copy), "--out", str(target)]) == 0
    svg = target.read_text()
    assert "<!-- digits (weight 1) -->" in svg
    assert "<!-- Rewards in training (smoothed) -->" in svg


def test_a_picture_that_cannot_be_written(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = str(trained / "runs" / "first")
    assert reinforge(["runs", "plot", run, "--out", str(tmp_path / "picture.jpeg")]) == 2
    assert "ends in .png, .svg, .pdf" in capsys.readouterr().err
    assert reinforge(["runs", "plot", run, "--out", str(tmp_path / "none" / "picture.png")]) == 4
    assert "could not be written: No such file or directory." in capsys.readouterr().err


def test_steps_are_whole_numbers():
    axes = figure.Figure().subplots()
    axes.plot([1, 2, 3], [0.0, 1.0, 2.0])
    _finish(axes, "title", "unit")
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_greedy_and_sampled_both_show_where_they_agree():
    axes = figure.Figure().subplots()
    _draw_heldout(axes, [{"step": 0, "score": 0.5, "ci95": (0.4, 0.6), "greedy_pass_at_1": 0.5}])
    greedy = next(line for line in axes.lines if line.get_label() == "greedy")
    ((sampled, _, _),) = axes.containers
    assert greedy.get_zorder() > sampled.get_zorder()
    assert greedy.get_markersize() < sampled.get_markersize() / 2
