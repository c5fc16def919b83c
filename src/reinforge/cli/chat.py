"""`reinforge chat`: talk to a model, an adapter or a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import find_subject_name, runs_dir_option, subject_errors
from reinforge.cli.text import say, visible
from reinforge.errors import UsageError

if TYPE_CHECKING:
    from reinforge.data.render import Renderer
    from reinforge.inference.engine import Engine

KEPT_BYTES = 2**30
"""Most memory for keys and values of what was said, so that a turn runs only what is new."""


@click.command("chat")
@click.argument("subject", metavar="MODEL_OR_ADAPTER")
@click.option("--system", help="System prompt; a run brings the one it was trained with.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0: always the likeliest."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer; half the model's window, at most 512.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same answers.")
@runs_dir_option
def chat_command(
    subject: str, system: str | None, temperature: float, max_tokens: int | None, seed: int, runs_dir: Path
) -> None:
    """Talk to a model, an adapter or a run; answers go to stdout.

    MODEL_OR_ADAPTER is a folder or hub id of a model, an adapter folder, a run (RUN) or a run at a checkpoint
    (RUN@STEP). Each line of input is a message; /new forgets what was said, Ctrl-D ends.
    """
    found = find_subject_name(subject, runs_dir)
    with subject_errors(subject, runs_dir):
        conversation = Conversation(found, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)
    for line in _lines():
        if line == "/new":
            conversation.forget()
            say("forgotten")
        elif line:
            answer = conversation.answer(line)
            click.echo(visible(answer) if sys.stdout.isatty() else answer)


def _lines() -> Iterator[str]:
    """What a person types, or what a pipe holds."""
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()


def _trained_system_prompt(run_path: Path) -> str | None:
    from reinforge.run_store import Run

    with Run.open(run_path) as run:
        data: dict[str, Any] = run.config().get("data", {})
    system: str | None = data.get("system_prompt")
    return system


class Conversation:
    """A model that remembers what was said, as far as its window reaches."""

    def __init__(
        self, subject: str, *, system: str | None, temperature: float, max_tokens: int | None, seed: int
    ) -> None:
        from reinforge.cluster.local import make_sampler
        from reinforge.cluster.task import window_of
        from reinforge.config import SamplingParams
        from reinforge.data.render import Renderer
        from reinforge.policy.subject import find_subject

        found = find_subject(subject)
        if system is None and found.run is not None:
            system = _trained_system_prompt(found.run)
        policy = found.load()
        window = window_of(policy) or 4096
        self._max_tokens = max_tokens or min(512, window // 2)
        if self._max_tokens >= window:
            raise UsageError(f"--max-tokens {self._max_tokens} leaves no room for a message in a window of {window}.")
        self._longest_prompt = window - self._max_tokens
        self._renderer: Renderer = Renderer.from_folder(policy.folder)
        params = SamplingParams(temperature=temperature or 1.0)
        self._sampler: Engine = make_sampler(
            policy, self._renderer, params, self._max_tokens, slots=1, keep_bytes=KEPT_BYTES
        )
        self._sampler.load(policy.adapter(0))
        self._greedy, self._seed, self._turn = temperature == 0, seed, 0
        self._system: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._said: list[dict[str, Any]] = []

    def forget(self) -> None:
        self._said = []

    def answer(self, message: str) -> str:
        """The model's next words. When the window is full, the oldest messages are forgotten, two at a time."""
        from reinforge.types import Example, SampleRequest

        self._said.append({"role": "user", "content": message})
        prompt = self._renderer.prompt(Example(self._turn, (*self._system, *self._said)))
        while prompt.num_tokens > self._longest_prompt:
            if len(self._said) == 1:
                self._said = []
                raise UsageError(
                    f"The message has {prompt.num_tokens} tokens; with answers of {self._max_tokens} the model's window"
                    f" takes {self._longest_prompt}.",
                    hint="Shorten it, or lower --max-tokens.",
                )
            self._said = self._said[2:]
            prompt = self._renderer.prompt(Example(self._turn, (*self._system, *self._said)))
        request = SampleRequest(prompt, 1, (self._seed, self._turn, 0), greedy=self._greedy)
        ((_, completion),) = self._sampler.sample([request])
        self._turn += 1
        self._said.append({"role": "assistant", "content": completion.text})
        return completion.text
