"""The benchmark of scaling: its bookkeeping and picture, and one point of it on a toy. Nothing here asserts a speed."""

import json

import pytest


@pytest.fixture
def scaling(bench):
    return bench("scaling")


def toy(bench, scaling):
    workload = bench("workload")
    size = workload.ModelSize(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    return scaling.Point("G", "4", workload.Shape("toy", 6, 8), num_generations=4, size=size)


def make_row(curve, value, seconds):
    stages = {"rollout_s": seconds / 3, "update_s": seconds * 2 / 3, "cpu_s": seconds}
    floors = {f"floor_{name}_s": seconds / 6 for name in ("rollout", "update")} | {"floor_s": seconds / 3}
    memory = {"idle_bytes": 3e8, "peak_bytes": 3e8 + 1e8 * seconds}
    return {"curve": curve, "value": value, "completion_tokens": 128, **stages, **floors, **memory}


def test_every_curve_holds_the_usual_step(scaling, bench):
    """The values in the middle: G = 16, 64 prompt tokens, 5M parameters."""
    curves = {}
    for point in scaling.POINTS:
        curves.setdefault(point.curve, []).append(point)
    assert {name: len(points) for name, points in curves.items()} == {"G": 4, "prompt tokens": 4, "model": 3}
    for points in curves.values():
        usual = [p for p in points if p.num_generations == 16 and p.shape.prompt_tokens == 64]
        assert any(p.size == bench("workload").ModelSize() for p in usual)
        assert all(p.value == str(p.num_generations) for p in points if p.curve == "G")
        assert all(p.value == str(p.shape.prompt_tokens) for p in points if p.curve == "prompt tokens")


def test_sizes_are_called_by_their_parameters(scaling, bench):
    floor = bench("floor")
    sizes = {point.value: point.size for point in scaling.POINTS if point.curve == "model"}
    for name, size in sizes.items():
        total = floor.linear_parameters(size) + size.vocab_size * size.hidden_size
        assert 0.8 < total / (1e6 * float(name.removesuffix("M"))) < 1.3


def test_the_table_tells_how_far_the_floor_is(scaling):
    text = scaling.table([make_row("G", "8", 6.0)])
    assert "G 8" in text
    assert "6.00 (2.00)" in text
    assert "3.0x" in text


def test_the_picture_is_drawn(scaling, tmp_path):
    rows = [make_row(curve, value, s) for curve in ("G", "model") for value, s in (("a", 1.0), ("b", 4.0))]
    scaling.draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_toy_is_measured(scaling, bench):
    (row,) = json.loads(json.dumps(scaling.measure([toy(bench, scaling)], prompts=1, counted_steps=1)))
    assert row["completion_tokens"] == 4 * 8
    assert row["cpu_s"] == pytest.approx(row["rollout_s"] + row["update_s"])
    assert row["peak_bytes"] >= row["idle_bytes"] > 0
    assert 0 < row["floor_s"] == pytest.approx(row["floor_rollout_s"] + row["floor_update_s"])
