"""`reinforge rewards packages`: the environments with packages of reward functions on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from reinforge.cli.text import say, shortened, table
from reinforge.errors import UsageError


@click.command("packages")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="Remove this one; `all` removes every one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, with the versions of all packages.")
def packages_command(removed: tuple[str, ...], as_json: bool) -> None:
    """The environments made for `reward_fns.runtime.packages`, with their sizes.

    One that is removed is made again when a run needs it. One that a process uses cannot be removed.
    """
    from reinforge.sandbox.environments import environments_folder, list_environments, megabytes, remove_environments

    known = [environment.key for environment in list_environments()]
    chosen = known if "all" in removed else list(dict.fromkeys(removed))
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UsageError(
            f"There is no environment {unknown[0]} in {environments_folder()}.", hint="Look: without --remove."
        )
    if chosen:
        say(f"removed {len(chosen)}, {megabytes(remove_environments(chosen))} free")
    environments = list_environments()
    if as_json:
        described = [asdict(environment) for environment in environments]
        click.echo(json.dumps({"folder": str(environments_folder()), "environments": described}))
    elif environments:
        rows = [
            [e.key, megabytes(e.num_bytes), str(len(e.packages)), e.made, shortened(", ".join(e.requirements), 60)]
            for e in environments
        ]
        click.echo(table(["environment", "size", "packages", "made", "asked for"], rows))
        say(f"in {environments_folder()}")
    else:
        say(f"no environments in {environments_folder()}")
