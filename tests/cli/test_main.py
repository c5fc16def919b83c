"""The one place where errors become exit codes, and text from strangers becomes harmless."""

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from reinforge import errors
from reinforge.cli import main
from reinforge.cli.text import table, visible

FAILURES = {
    "config": (errors.ConfigError("seed = x.", hint="Set seed = 0."), 2, "config  seed = x.\n        Set seed = 0.\n"),
    "data": (errors.DataError("a.jsonl:3 is empty."), 3, "data  a.jsonl:3 is empty.\n"),
    "setup": (errors.SetupError("No torch."), 4, "setup  No torch.\n"),
    "stopped": (errors.StoppedByGuard("Limit."), 5, "stopped  Limit.\n"),
    "sigterm": (errors.Interrupted("Stopped.", exit_code=143), 143, "interrupted  Stopped.\n"),
    "package": (
        ModuleNotFoundError("No module named 'torch'", name="torch"),
        4,
        "setup  The package torch is not installed.\n"
        '       Install what training needs: pip install "reinforge[train]"\n',
    ),
    "sigint": (KeyboardInterrupt(), 130, "interrupted\n"),
}


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the next command end with this exception."""

    def install(error: BaseException) -> None:
        @click.command()
        def failing() -> None:
            raise error

        monkeypatch.setattr(main, "cli", failing)

    return install


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_is_one_message_and_its_exit_code(name: str, command_that, capsys: pytest.CaptureFixture[str]):
    error, exit_code, shown = FAILURES[name]
    command_that(error)
    assert main.run([]) == exit_code
    assert capsys.readouterr() == ("", shown)


def test_any_other_exception_is_a_bug_with_its_traceback(command_that, capsys: pytest.CaptureFixture[str]):
    command_that(KeyError("surprise"))
    assert main.run([]) == 1
    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert "KeyError: 'surprise'" in stderr
    assert stderr.splitlines()[-1].startswith("bug  ")


def test_wrong_calls_say_how_to_get_help(capsys: pytest.CaptureFixture[str]):
    assert main.run(["trian"]) == 2
    assert capsys.readouterr().err.startswith("usage  No such command 'trian'.")
    assert main.run(["train", "x.yaml", "--nope"]) == 2
    assert capsys.readouterr().err.endswith("See reinforge train --help.\n")
    assert main.run(["train", "/no/such.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err == "usage  There is no config file /no/such.yaml.\n"


def test_a_reader_that_goes_away_ends_the_command_quietly():
    code = "import sys; from reinforge.cli.main import main; main(['--help'])"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.close()
    _, stderr = program.communicate()
    assert (program.returncode, stderr) == (0, b"")


def test_error_messages_cannot_act_on_the_terminal(command_that, capsys: pytest.CaptureFixture[str]):
    command_that(errors.DataError("row \x1b[2J\r\u202eevil"))
    main.run([])
    assert capsys.readouterr().err == "data  row \\x1b[2J\\r\\u202eevil\n"


@pytest.mark.parametrize("text", ["Größe 漢字\u3000x", "👩\u200d👩\u200d👧 हिन्दी", "नमस्\u200cते", "a\tb\nc"])
def test_texts_of_any_language_show_as_they_are(text: str):
    assert visible(text) == text


def test_only_columns_of_figures_are_flushed_right():
    rows = [["3rd", "12ab", "0.5", "-", "5/200"], ["b", "7", "-12.25", "40%", "10/200"]]
    assert table(["name", "hash", "mean", "share", "step"], rows).splitlines() == [
        "name  hash    mean  share    step",
        "3rd   12ab     0.5      -   5/200",
        "b     7     -12.25    40%  10/200",
    ]
