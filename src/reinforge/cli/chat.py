"""`reinforge chat`: talk to a model, an adapter or a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import find_subject_name, runs_dir_option, subject_errors
from reinforge.cli.text import say, visible
from reinforge.errors import UsageError

if TYPE_CHECKING:
    from reinforge.config import LoraParams
    from reinforge.data.render import Renderer
    from reinforge.inference.engine import Engine
    from reinforge.policy.subject import Subject
    from reinforge.types import Adapter, Prompt

KEPT_BYTES = 2**30
"""Most memory for keys and values of what was said, so that a turn runs only what is new."""


@click.command("chat")
@click.argument("subjects", metavar="MODEL_OR_ADAPTER...", nargs=-1, required=True)
@click.option("--system", help="System prompt; a run brings the one it was trained with.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0: always the likeliest."
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer; half the model's window, at most 512.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same answers.")
@runs_dir_option
def chat_command(
    subjects: tuple[str, ...],
    system: str | None,
    temperature: float,
    max_tokens: int | None,
    seed: int,
    runs_dir: Path,
) -> None:
    """Talk to a model, an adapter or a run, or to several side by side; answers go to stdout.

    MODEL_OR_ADAPTER is a folder or hub id of a model, an adapter folder, a run (RUN) or a run at a checkpoint
    (RUN@STEP). Each line of input is a message; /new forgets what was said, Ctrl-D ends.

    Several must share one base model, which may be one of them. They answer every message in one batch, each after a
    line with its name, and draw with the same random numbers.
    """
    found = {find_subject_name(subject, runs_dir): subject for subject in subjects}
    if len(found) < len(subjects):
        say("What is named twice answers once.")
    with ExitStack() as errors:
        for subject in subjects:
            errors.enter_context(subject_errors(subject, runs_dir))
        conversation = Conversation(
            list(found), system=system, temperature=temperature, max_tokens=max_tokens, seed=seed
        )
    for line in _lines():
        if line == "/new":
            conversation.forget()
            say("forgotten")
        elif line:
            try:
                answers = conversation.answers(line)
            except UsageError as error:  # a person can say it shorter; what a pipe holds was meant as a whole
                if not sys.stdin.isatty():
                    raise
                say(f"{error}")
                continue
            for subject, answer in zip(found.values(), answers, strict=True):
                if len(found) > 1:
                    click.secho(f"[{visible(subject)}]", bold=True)
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


@dataclass
class _Talk:
    """What was said to one of the models, and by it."""

    adapter: str | None
    """Its name where several share a sampler."""
    system: list[dict[str, Any]]
    said: list[dict[str, Any]] = field(default_factory=list)


class Conversation:
    """Models that remember what was said, as far as their window reaches. Several share one base model and answer in
    one batch, with the same random numbers."""

    def __init__(
        self, subjects: Sequence[str], *, system: str | None, temperature: float, max_tokens: int | None, seed: int
    ) -> None:
        from reinforge.cluster.local import make_sampler, make_shared_sampler
        from reinforge.cluster.task import window_of
        from reinforge.config import SamplingParams
        from reinforge.data.render import Renderer
        from reinforge.policy.subject import find_subject, load_base_of

        found = {name: find_subject(name) for name in subjects}
        is_one = len(found) == 1
        adapters: Mapping[str, tuple[Adapter, LoraParams]] = {}
        if is_one:
            policy = found[subjects[0]].load()
        else:
            policy, adapters = load_base_of(found)
        window = window_of(policy) or 4096
        self._max_tokens = max_tokens or min(512, window // 2)
        if self._max_tokens >= window:
            raise UsageError(
                f"--max-tokens {self._max_tokens} leaves no room for a message in a window of {window}.",
                hint=f"Leave it out ({min(512, window // 2)}), or give less.",
            )
        self._longest_prompt = window - self._max_tokens
        self._renderer: Renderer = Renderer.from_folder(policy.folder)
        params = SamplingParams(temperature=temperature or 1.0)
        make = make_sampler if is_one else make_shared_sampler
        self._sampler: Engine = make(
            policy, self._renderer, params, self._max_tokens, slots=len(found), keep_bytes=KEPT_BYTES
        )
        for name, (adapter, lora) in adapters.items():
            self._sampler.add_adapter(name, adapter, lora)
        self._greedy, self._seed, self._turn = temperature == 0, seed, 0
        self._talks = [
            _Talk(name if name in adapters else None, _system_messages(subject, system))
            for name, subject in found.items()
        ]

    def forget(self) -> None:
        for talk in self._talks:
            talk.said = []

    def answers(self, message: str) -> list[str]:
        """The next words of each model. UsageError, and nothing is forgotten, if the message alone is too long."""
        from reinforge.types import SampleRequest

        kept = [self._kept(talk, message) for talk in self._talks]
        draw = (self._seed, self._turn, 0)
        requests = [
            SampleRequest(prompt, 1, draw, greedy=self._greedy, adapter=talk.adapter)
            for talk, (_, prompt) in zip(self._talks, kept, strict=True)
        ]
        texts = {place: completion.text for place, completion in self._sampler.sample(requests)}
        self._turn += 1
        for place, talk in enumerate(self._talks):
            talk.said = [*kept[place][0], {"role": "assistant", "content": texts[place]}]
        return [texts[place] for place in range(len(self._talks))]

    def _kept(self, talk: _Talk, message: str) -> tuple[list[dict[str, Any]], Prompt]:
        """What is said with this message, and its prompt. When the window is full, the oldest messages are left out,
        two at a time."""
        from reinforge.types import Example

        said = [*talk.said, {"role": "user", "content": message}]
        prompt = self._renderer.prompt(Example(self._turn, (*talk.system, *said)))
        while prompt.num_tokens > self._longest_prompt:
            if len(said) == 1:
                raise UsageError(
                    f"The message has {prompt.num_tokens} tokens; with answers of {self._max_tokens} the model's window"
                    f" takes {self._longest_prompt}.",
                    hint="Shorten it, or lower --max-tokens.",
                )
            said = said[2:]
            prompt = self._renderer.prompt(Example(self._turn, (*talk.system, *said)))
        return said, prompt


def _system_messages(subject: Subject, given: str | None) -> list[dict[str, Any]]:
    """As asked for, else as the run was trained."""
    if given is None and subject.run is not None:
        given = _trained_system_prompt(subject.run)
    return [{"role": "system", "content": given}] if given else []
