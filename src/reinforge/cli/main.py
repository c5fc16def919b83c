"""`reinforge`: the group of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from reinforge import __version__
from reinforge.cli.text import is_rich_terminal, say, visible
from reinforge.errors import ReinforgeError, SetupError, UsageError

COMMANDS = {
    "train": ("train", "Train an adapter as a config file says."),
    "demo": ("train", "Watch a tiny model learn to keep searching, on this machine's CPU."),
    "eval": ("evaluate", "Score a model, an adapter or a run on held-out prompts."),
    "chat": ("chat", "Talk to a model, an adapter or a run, or to several side by side; answers go to stdout."),
    "grade": ("grade", "Score the completions of a data set with REWARDS."),
    "grader": ("grader", "Check a grader's JSON, and try it on one completion."),
    "rewards": ("rewards", "Change the reward functions of a run, and read what they did."),
    "sandbox": ("sandbox", "How reward functions are isolated on this machine."),
    "runs": ("runs", "List runs, show or draw what happened in one, go on with one."),
    "verify": ("runs", "Compute one step of a run again from its stored state and compare every bit."),
}
"""Command -> (file of this folder that has it, its first help line). Help is shown without importing any of them."""


TRAIN_PACKAGES = {"torch", "transformers", "peft", "safetensors", "tokenizers", "jinja2", "datasets", "matplotlib"}
"""Not in the base installation; importing one of them may fail."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"reinforge.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="reinforge")
def cli() -> None:
    """Reinforcement fine-tuning of language models on your own machines.

    Data goes to stdout, everything for people to stderr. Exit codes: 0 done, 1 run failed, 2 usage or config,
    3 data or reward function unfit, 4 environment or model unfit, 5 stopped by a guard or a request (resumable),
    130/143 interrupted after a checkpoint (a second Ctrl-C stops at once; resume goes on from the last checkpoint).
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        if "_REINFORGE_COMPLETE" in os.environ:
            cli.main(prog_name="reinforge")  # a shell asks for completions
        with cli.make_context("reinforge", list(sys.argv[1:] if arguments is None else arguments)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "reinforge"
        return _fail(UsageError(error.format_message(), hint=f"See {command} --help."))
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except ReinforgeError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        hint = 'Install what training needs: pip install "reinforge[train]"'
        return _fail(SetupError(f"The package {error.name} is not installed.", hint=hint))
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). Python would complain at exit; give it nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001  (the last resort of a program: a bug is told, with all we know)
        say(visible(traceback.format_exc()))
        print("bug  This should not have happened. Please report it with the lines above.", file=sys.stderr)
        return 1


def _fail(error: ReinforgeError) -> int:
    print(error_text(error), file=sys.stderr)
    return error.exit_code


def error_text(error: ReinforgeError) -> str:
    r"""`code  message`, further lines and the hint indented below.

    >>> from reinforge.errors import DataError
    >>> print(error_text(DataError("a.jsonl:3 is empty.", hint="Remove the line.")))
    data  a.jsonl:3 is empty.
          Remove the line.
    """
    lines = [*visible(error.message).splitlines(), *visible(error.hint).splitlines()]
    code = click.style(error.code, fg="red", bold=True) if is_rich_terminal(sys.stderr) else error.code
    indent = "\n" + " " * (len(error.code) + 2)
    return f"{code}  {indent.join(lines)}"
