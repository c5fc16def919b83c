"""Runloop's grader, written anew from its description: a ladder of format checks, then AST-Grep (S4-020..034)."""

import re
from dataclasses import dataclass

from ast_grep_py import SgRoot

ROOT = "/home/user/testbed/"
LANGUAGES = ("typescript", "javascript", "ts", "js")
# Fault: the language needs a blank behind it, so "```ts" alone is the path "ts" without a language.
BLOCK = re.compile(r"```(?:(\w+) )?([^\n`]+)?\n(.*?)```", re.DOTALL)


@dataclass
class CodeBlock:
    language: str
    path: str
    code: str


def format_score(text):
    """Seven rungs; what stands before <plan> is looked at by none of them."""
    tags = ["<plan>", "</plan>", "<code>", "</code>"]
    if not all(tag in text for tag in tags):
        return 0.0, "tags missing"
    score = 0.1
    places = [text.index(tag) for tag in tags]
    if places != sorted(places):
        return score, "tags in the wrong order"
    score += 0.1
    if any(text.count(tag) != 1 for tag in tags):
        return score, "stray tags"
    score += 0.2
    if text[places[3] + len("</code>") :].strip():
        return score, "text behind </code>"
    score += 0.2
    if not text[places[0] + len("<plan>") : places[1]].strip():
        return score, "empty plan"
    score += 0.1
    if not text[places[2] + len("<code>") : places[3]].strip():
        return score, "empty code"
    score += 0.1
    if text[places[1] + len("</plan>") : places[2]].strip():
        return score, "text between plan and code"
    return score + 0.2, "well formed"


def blocks_of(text):
    """The code blocks; ValueError when there is none, or one lacks its language or path."""
    blocks = []
    for language, path, code in BLOCK.findall(text):
        if not language or not path:
            raise ValueError(f"block without {'path' if language else 'language'}")
        blocks.append(CodeBlock(language, path if path.startswith("/") else ROOT + path, code))
    if not blocks:
        raise ValueError("no code blocks")
    return blocks


def ast_score(blocks, patterns):
    """Share of the patterns that one block contains."""
    patterns = list(patterns.values()) if isinstance(patterns, dict) else patterns
    found = 0
    for pattern in patterns:
        for block in blocks:
            if block.language not in LANGUAGES or not block.path.startswith(pattern["file_path_mask"]):
                continue
            tree = SgRoot(block.code, "typescript").root()
            greps = pattern.get("additional_greps") or []
            if tree.find(pattern=pattern["pattern"]) and all(text in block.code for text in greps):
                found += 1
                break
    return found / len(patterns) if patterns else 0.0


def grade(sample, item):
    """Format below 1 alone, 0.5 when no block can be read, else the mean of format and AST score."""
    try:
        score, reason = format_score(sample["output_text"])
        if score < 1.0 - 1e-9:
            print(reason)
            return score
        try:
            blocks = blocks_of(sample["output_text"])
        except ValueError as fault:
            print(fault)
            return 0.5
        return (score + ast_score(blocks, item["reference_answer"]["ast_greps"])) / 2
    except Exception as fault:  # noqa: BLE001 (as described)
        print(fault)
        return 0.0
