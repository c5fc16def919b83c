"""Options that several commands share, and how a run is named."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from reinforge.errors import ModelError, UsageError

runs_dir_option = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs live."
)
override_option = click.option(
    "-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. -o lora.rank=8."
)
package_option = click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="NAME[VERSION]",
    help="Package for the functions' own environment, as in reward_fns.runtime.packages; may be repeated.",
)
no_sandbox_option = click.option(
    "--unsafe-no-sandbox",
    is_flag=True,
    help="Run reward functions you trust even where this machine cannot isolate them (SECURITY.md).",
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
    raise UsageError(f"There is no run {name} here or in {runs_dir}/.", hint=_runs_hint(name, runs_dir))


def _runs_hint(name: str, runs_dir: Path) -> str:
    from reinforge.run_store import list_runs

    names = [path.name for path in list_runs(runs_dir)]
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(names[:5]) or 'none'}."


def known_run(name: str, runs_dir: Path) -> Path | None:
    """The folder of a run, or None if neither a folder nor a run is called so."""
    return next((path for path in (Path(name), runs_dir / name) if (path / "run.json").is_file()), None)


def find_subject_name(name: str, runs_dir: Path) -> str:
    """A run's name, with or without @STEP, as its path; the place of a model or adapter as it is."""
    path = known_run(_run_part(name), runs_dir)
    return name if path is None else f"{path}{name.removeprefix(_run_part(name))}"


def _run_part(name: str) -> str:
    run, at, _ = name.rpartition("@")
    return run if at else name


@contextmanager
def subject_errors(name: str, runs_dir: Path, *, config_given: bool = True) -> Iterator[None]:
    """A name that is no folder here could have been meant as a model of the hub or as a run: if it turns out to be no
    model, or (without a config) had to be a run, say that there is no such run either."""
    run = _run_part(name)
    if Path(name).exists() or known_run(run, runs_dir) is not None:
        yield
        return
    no_run = f"There is no run {run} here or in {runs_dir}/"
    if not config_given:
        raise UsageError(f"{no_run}, and a model needs --config CONFIG.", hint=_runs_hint(run, runs_dir))
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{error.message}\n{no_run} either.", hint=_runs_hint(run, runs_dir)) from error
