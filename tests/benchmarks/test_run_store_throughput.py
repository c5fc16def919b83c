"""The benchmark of the run store on a small run. Nothing here asserts a speed."""

import json

import pytest

from reinforge.run_store import Run


@pytest.fixture
def store(bench):
    return bench("run_store_throughput")


def test_every_figure_of_a_small_run_is_there(store, tmp_path):
    (row,) = json.loads(json.dumps(store.measure([300], tmp_path)))
    assert row["completions"] == 3 * 128
    assert row["rows"] == 3 * (1 + 128 * 4)
    assert row["bytes_per_completion"] > 200
    assert set(store.SLOW) < set(row["read_ms"])
    assert "one step" in store.table([row])
    assert not list(tmp_path.iterdir())


def test_rows_are_counted_as_they_are_stored(store, tmp_path):
    row = store.write(tmp_path, 256, store.Text(store.Path(store.__file__).resolve().parents[1], seed=0))
    with Run.open(tmp_path / "run256") as run:
        tables = ("steps", "completions", "tokens", "scores")
        counts = [run._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
        assert sum(counts) == row["rows"]
        assert [name for name, ask in store.questions(run).items() if not ask() and name != "one example"] == []


def test_what_is_searched_for_is_found_on_every_page(store, tmp_path, monkeypatch):
    store.write(tmp_path, 256, store.Text(store.Path(store.__file__).resolve().parents[1], seed=0))
    with Run.open(tmp_path / "run256") as run:
        whole = [row.text for row in run.completions(limit=-1)]
        monkeypatch.setattr(store, "PAGE", 7)
        found = store.questions(run)["search completions"]()
        assert len(found) == sum("policy" in text for text in whole) > 0
        assert len(store.questions(run)["search scores"]()) == len(run.score_log(state="error", limit=10_000)) > 0
