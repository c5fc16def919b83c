"""Options that several commands share, and how a run is named."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from reinforge.errors import UsageError

runs_dir_option = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs live."
)
override_option = click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. -o lora.rank=8."
)


def find_run(name: str | None, runs_dir: Path) -> Path:
    """The folder of a run: given as such, or by the run's name; without a name the newest."""
    from reinforge.run_store import list_runs

    if name is not None:
        found = known_run(name, runs_dir)
        if found is not None:
            return found
    known = list_runs(runs_dir)
    if name is None:
        if not known:
            raise UsageError(f"There are no runs in {runs_dir}/.", hint="Begin one: reinforge train or reinforge demo.")
        return known[0]
    names = [path.name for path in known]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names[:5]) or 'none'}."
    raise UsageError(f"There is no run {name} here or in {runs_dir}/.", hint=hint)


def known_run(name: str, runs_dir: Path) -> Path | None:
    """The folder of a run, or None if neither a folder nor a run is called so."""
    return next((path for path in (Path(name), runs_dir / name) if (path / "run.json").is_file()), None)


def find_subject_name(name: str, runs_dir: Path) -> str:
    """A run's name, with or without @STEP, as its path; the place of a model or adapter as it is."""
    run, at, step = name.rpartition("@")
    path = known_run(run if at else name, runs_dir)
    return name if path is None else f"{path}{at}{step if at else ''}"
