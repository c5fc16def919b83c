"""How a completion is laid out around its answer: what a prompt asks for, and what a reward function looks for.

A layout is a template with `{answer}`, or `{answer_json}` where it is part of a JSON text, and `{reasoning}` where it
has room for one.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

ANSWER_TAGS = ("answer", "final_answer", "final", "solution", "output", "result", "response", "code", "label", "sql")
REASONING_TAGS = ("think", "thinking", "reasoning", "reason", "thought", "thoughts", "scratchpad", "rationale",
                  "analysis", "explanation", "plan", "work")  # fmt: skip
BARE, AS_JSON = "{answer}", "{answer_json}"
_KNOWN_TAG = re.compile(rf"<(/?)({'|'.join((*ANSWER_TAGS, *REASONING_TAGS))})>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?([A-Za-z][\w-]*)>")
_HASHES = "{reasoning}\n#### {answer}"
_BOXED = "{reasoning} \\boxed{{{answer}}}"


def asked_layout(prompt: str) -> str | None:
    """The layout that a prompt asks for; None when it names none that we know.

    >>> asked_layout("Write\\n<think>\\n...\\n</think>\\n<answer>\\n...\\n</answer>")
    '<think>\\n{reasoning}\\n</think>\\n<answer>\\n{answer}\\n</answer>'
    >>> asked_layout("Reason within <think> tags, then give it in <answer> tags.")
    '<think>{reasoning}</think>\\n<answer>{answer}</answer>'
    >>> asked_layout("What is 2 + 2?") is None
    True
    """
    names = list(dict.fromkeys(match[2] for match in _KNOWN_TAG.finditer(prompt)))
    answer = next((name for name in reversed(names) if name.lower() in ANSWER_TAGS), None)
    if answer is None:
        if "####" in prompt:
            return _HASHES
        return _BOXED if "\\boxed" in prompt else None
    names = [name for name in names if name == answer or name.lower() in REASONING_TAGS]
    block = r"\s*".join(rf"<{name}>(?:(?!</?\w+>).)*</{name}>" for name in names)
    written = re.search(block, prompt, re.DOTALL)
    if written is None:
        return "\n".join(_tag(name, answer) for name in names)
    return _KEEP_SPACE.sub(lambda tag: _filled(tag, answer), written[0].replace("{", "{{").replace("}", "}}"))


_KEEP_SPACE = re.compile(r"<(\w+)>(\s*)(?:.*?)(\s*)</\1>", re.DOTALL)


def _filled(tag: re.Match[str], answer: str) -> str:
    """The tag as it is written, its content replaced; only line breaks around it mean something."""
    before, after = ("\n" if "\n" in tag[group] else "" for group in (2, 3))
    return f"<{tag[1]}>{before}{_content(tag[1], answer)}{after}</{tag[1]}>"


def _tag(name: str, answer: str, space: str = "") -> str:
    return f"<{name}>{space}{_content(name, answer)}{space}</{name}>"


def _content(name: str, answer: str) -> str:
    return BARE if name == answer else "{reasoning}"


def source_layouts(source: str) -> tuple[str, ...]:
    """Layouts that a reward's source text hints at, the most telling first, the bare answer last.

    >>> source_layouts("re.search('<answer>(.*?)</answer>', text)")[0]
    '<answer>{answer}</answer>'
    >>> source_layouts("text.split('####')[-1]")
    ('{reasoning}\\n#### {answer}', '{answer}')
    """
    found = list(_tag_layouts(source))
    found += [_HASHES] if "####" in source else []
    found += [_BOXED] if "boxed" in source else []
    found += [f'{{{{"{key}": {AS_JSON}}}}}' for key in json_keys(source)]
    return tuple(dict.fromkeys([*found, BARE]))


def _tag_layouts(source: str) -> Iterator[str]:
    texts = "\n".join(_texts(source))
    names = list(dict.fromkeys(match[1] for match in _ANY_TAG.finditer(texts)))
    known = [name for name in names if name.lower() in (*ANSWER_TAGS, *REASONING_TAGS)]
    names = known or names
    if not names:
        return
    answer = next((name for name in reversed(names) if name.lower() in ANSWER_TAGS), names[-1])
    ordered = [name for name in names if name != answer] + [answer]
    yield "".join(_tag(name, answer) for name in ordered)
    yield "\n".join(_tag(name, answer) for name in ordered)
    yield "\n".join(_tag(name, answer, "\n") for name in ordered)


def _texts(source: str) -> Iterator[str]:
    """Python's string constants; of a grader's JSON the tags that `"tags": ["a"]` names."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = ast.Module([], [])
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
    for match in re.finditer(r'"tags?": *(\[[^\]]*\]|"[^"]*")', source):
        try:
            named = json.loads(match[1])
        except ValueError:
            continue
        yield from (f"<{name}>" for name in ([named] if isinstance(named, str) else named))


def json_keys(source: str) -> tuple[str, ...]:
    """Keys that a source reads from a completion that is JSON.

    >>> json_keys('x = sample["output_json"]["predicted"]')
    ('predicted',)
    >>> json_keys('"input": "{{sample.output_json.codes}}"')
    ('codes',)
    """
    found = re.findall(r"sample\.output_json\.(\w+)", source)
    if "output_json" in source or "json.loads" in source:
        found += re.findall(r"""output_json["'][\])](?:\s*or\s*\{\}\))?(?:\[|\.get\()["'](\w+)""", source)
        found += re.findall(r"""(?:\[|\.get\()["'](\w+)["']""", source)
    skipped = {"output_json", "output_text", "reference_answer", "content", "choices", "output_tools"}
    return tuple(key for key in dict.fromkeys(found) if key not in skipped)[:4]
