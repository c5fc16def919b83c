"""`reinforge sandbox`: how reward functions are isolated on this machine, and the consent to do without."""

from __future__ import annotations

import json
from typing import Any

import click

from reinforge.cli.text import say, table


@click.group("sandbox", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def sandbox_command(context: click.Context, as_json: bool) -> None:
    """How reward functions are isolated on this machine.

    Which tiers of the sandbox work here, which one is used, and why others are missing.
    """
    if context.invoked_subcommand is not None:
        return
    from reinforge.sandbox.tiers import survey

    found = survey()
    click.echo(json.dumps(found) if as_json else _survey_text(found))


def _survey_text(found: dict[str, Any]) -> str:
    rows = [[tier["tier"], tier["isolation"], _state(tier, found)] for tier in found["tiers"]]
    return "\n".join(
        [table(["tier", "isolation", "here"], rows), *found["remarks"], found["hosts"], _consent_text(found)]
    )


def _state(tier: dict[str, str], found: dict[str, Any]) -> str:
    if tier["missing"]:
        return tier["missing"]
    if tier["tier"] == found["used"]:
        return "used, asked for by REINFORGE_SANDBOX" if found["asked_for"] else "used"
    return "not needed" if tier["tier"] == "plain" else "works"


def _consent_text(found: dict[str, Any]) -> str:
    consent = found["consent"]
    if consent is not None:
        return f"consent to run without isolation: given {consent['given']} ({consent['path']})"
    if found["used"] != "plain" or found["asked_for"]:
        return "consent to run without isolation: none, and none is needed"
    return "only functions that come with Reinforge run here: install bubblewrap, or reinforge sandbox consent"


@sandbox_command.command("consent")
@click.option("--withdraw", is_flag=True, help="Take it back.")
def consent_command(withdraw: bool) -> None:
    """Let reward functions run without isolation on this machine, wherever no tier that isolates works.

    Their code can then do whatever you can: read and write your files, use the network. Only for code you trust.
    """
    from reinforge.sandbox.consent import consent_path, give_consent, withdraw_consent

    if not withdraw:
        say(f"Reward functions may run without isolation on this machine (stored in {give_consent().path}).")
        say("Take it back: reinforge sandbox consent --withdraw")
    elif withdraw_consent():
        say("Reward functions of your own need isolation again on this machine.")
    else:
        say(f"There was no consent for this machine in {consent_path()}.")
