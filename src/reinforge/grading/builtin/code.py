"""Code in a Markdown reply: are the calls there that should be?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reinforge.grading.builtin.reading import Unreadable, answer_of, names_option, reference_list, shown, text_option
from reinforge.grading.builtin.result import Result, refused

MAX_BLOCKS = 200
"""Of a completion: each pattern is looked for in each."""
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`\n]*)")

# Languages as they are named after a fence -> as ast-grep names them. It panics on any other name.
PARSERS = {
    **dict.fromkeys(("typescript", "ts"), "typescript"),
    **dict.fromkeys(("javascript", "js", "jsx"), "javascript"),
    **dict.fromkeys(("python", "py"), "python"),
    **dict.fromkeys(("csharp", "cs", "c#"), "csharp"),
    **dict.fromkeys(("cpp", "c++"), "cpp"),
    **dict.fromkeys(("bash", "sh", "shell"), "bash"),
    **dict.fromkeys(("ruby", "rb"), "ruby"),
    **dict.fromkeys(("rust", "rs"), "rust"),
    **dict.fromkeys(("kotlin", "kt"), "kotlin"),
    **dict.fromkeys(("go", "golang"), "go"),
    **dict.fromkeys(("yaml", "yml"), "yaml"),
    **{name: name for name in ("tsx", "c", "java", "php", "swift", "scala", "html", "css", "json", "lua")},
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code with what stands behind its opening fence."""

    language: str
    """A key of PARSERS, or ""."""
    path: str
    body: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one block must hold."""

    pattern: str
    path: str
    """How the block's path must begin."""
    texts: tuple[str, ...]


def ast_grep(
    *,
    input: Any,
    reference: Any,
    languages: Sequence[str] = ("typescript", "javascript", "ts", "js"),
    root: str = "",
    tag: str = "",
    labelled: bool = False,
) -> Result:
    """The share of patterns that some code block of the reply holds, as syntax, not as text (S4-021..027).

    `reference`: patterns of ast-grep (`stripe.charges.create($$$)`), one or a list. A pattern is a text or an object
    with `pattern`, `file_path_mask` (how the block's path must begin) and `additional_greps` (texts that the same block
    must hold).
    `languages`: those that count; a block in another is passed over, one without a language is read as the first.
    `root`: put before relative paths and masks.
    `tag`: only the last `<tag>...</tag>` is searched.
    `labelled`: a reply with a block that lacks language or path scores 0.

    A block is written as three backticks, then language and path in either case or neither, then the code.

    >>> reply = "```ts src/pay.ts\\nconst c = await stripe.charges.create({amount: 5})\\n```"
    >>> ast_grep(input=reply, reference=["stripe.charges.create($$$)"]).score
    1.0
    >>> ast_grep(input=reply, reference=["stripe.charges.create($$$)", "stripe.refunds.create($$$)"])
    Result(score=0.5, reason='not found: stripe.refunds.create($$$)', metrics={})
    >>> ast_grep(input="Call stripe.charges.create().", reference="stripe.charges.create($$$)")
    Result(score=0.0, reason='no code block', metrics={})
    """
    named = _languages(languages)
    patterns = _patterns(reference, text_option("root", root))
    _check_patterns(patterns, named)
    text = answer_of(input, tag)
    if isinstance(text, Unreadable):
        return refused(text.reason)
    blocks = list(blocks_of(text, root))
    if not blocks:
        return refused("no code block")
    if len(blocks) > MAX_BLOCKS:
        return refused(f"{len(blocks):,} code blocks, at most {MAX_BLOCKS} are read")
    if labelled and not all(block.language and block.path for block in blocks):
        return refused("a code block without its language or path")
    missing = _missing(blocks, patterns, named)
    reason = f"not found: {', '.join(pattern.pattern for pattern in missing[:3])}" if missing else ""
    return Result(1 - len(missing) / len(patterns), reason)


def blocks_of(text: str, root: str = "") -> Iterator[Block]:
    """The closed code blocks of a Markdown text.

    >>> list(blocks_of("```ts\\nlet a\\n```\\n~~~ src/b.js\\nlet b\\n~~~\\n```py\\nopen", "/home/"))
    [Block(language='ts', path='', body='let a'), Block(language='', path='/home/src/b.js', body='let b')]
    """
    fence, info = "", ""
    body: list[str] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if fence:
            if len(stripped) >= len(fence) and set(stripped) == {fence[0]}:
                language, path = _label(info)
                yield Block(language, _placed(path, root), "\n".join(body))
                fence, body = "", []
            else:
                body.append(line)
        elif match := _FENCE.fullmatch(line.rstrip()):
            fence, info = match[1], match[2]


def _label(info: str) -> tuple[str, str]:
    """Language and path behind a fence. (The printed grader took a language alone for a path: S4-034.)"""
    words = info.split()
    language = words.pop(0).lower() if words and words[0].lower() in PARSERS else ""
    return language, words[0] if words else ""


def _placed(path: str, root: str) -> str:
    path = path.removeprefix("./")
    return root + path if path and not path.startswith("/") else path


def _languages(languages: object) -> list[str]:
    named = [name.lower() for name in names_option("languages", languages, at_least=1)]
    if not set(named) <= set(PARSERS):
        raise ValueError(f"languages: some of {', '.join(PARSERS)} are needed, not {shown(languages)}")
    return named


def _patterns(reference: object, root: str) -> list[Pattern]:
    if isinstance(reference, str) and reference.strip()[:1] not in ("[", "{"):
        reference = [reference]
    listed = [reference] if isinstance(reference, Mapping) else reference_list(reference)
    patterns = [_pattern({"pattern": one} if isinstance(one, str) else one, root) for one in listed]
    if not patterns:
        raise ValueError("reference: at least one pattern is needed")
    return patterns


def _pattern(one: object, root: str) -> Pattern:
    known = {"pattern", "file_path_mask", "additional_greps"}
    if not isinstance(one, Mapping) or not set(one) <= known or not one.get("pattern"):
        raise ValueError(f"reference: a pattern with {', '.join(sorted(known))} is needed, not {shown(one)}")
    mask, texts = one.get("file_path_mask") or "", one.get("additional_greps") or ()
    text = text_option("reference: pattern", one["pattern"])
    return Pattern(text, _placed(text_option("file_path_mask", mask), root), names_option("additional_greps", texts))


def _check_patterns(patterns: Sequence[Pattern], languages: Sequence[str]) -> None:
    """ValueError for a pattern that is code in none of the languages."""
    for pattern in patterns:
        faults = [_fault(pattern.pattern, PARSERS[language]) for language in languages]
        if all(faults):
            raise ValueError(
                f"reference: {shown(pattern.pattern)} is no pattern in {', '.join(languages)}: {faults[0]}"
            )


def _fault(pattern: str, parser: str) -> str:
    from ast_grep_py import SgRoot

    try:
        SgRoot("", parser).root().find(pattern=pattern)
    except RuntimeError as error:
        return str(error).split("\n")[-1]
    return ""


def _missing(blocks: Sequence[Block], patterns: Sequence[Pattern], languages: Sequence[str]) -> list[Pattern]:
    from ast_grep_py import SgRoot

    missing = list(patterns)
    for block in blocks:
        if block.language and block.language not in languages:
            continue
        # Lone surrogates are no text that a parser takes.
        body = block.body.encode("utf-8", "replace").decode("utf-8")
        tree = SgRoot(body, PARSERS[block.language or languages[0]]).root()
        missing = [pattern for pattern in missing if not _holds(block, tree, pattern)]
    return missing


def _holds(block: Block, tree: Any, pattern: Pattern) -> bool:
    if not block.path.startswith(pattern.path) or not all(text in block.body for text in pattern.texts):
        return False
    try:
        return tree.find(pattern=pattern.pattern) is not None
    except RuntimeError:  # a pattern of another language than this block's
        return False
