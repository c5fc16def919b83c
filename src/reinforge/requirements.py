"""Entries of `reward_fns.runtime.packages`: what may stand there, and why nothing else may.

An entry is a package's name, with extras, version specifiers and an environment marker where wanted (PEP 508), or the
name of a set in SETS. Whatever else pip or uv would take is refused: it would run a build on this machine, bring files
from places the machine's package index does not answer for, or could not be installed again when the run is resumed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OPENAI_GRADER = (
    "numpy==2.2.4",
    "scipy==1.15.2",
    "sympy==1.13.3",
    "pandas==2.2.3",
    "rapidfuzz==3.10.1",
    "scikit-learn==1.6.1",
    "rouge-score==0.1.2",
    "deepdiff==8.4.2",
    "jsonschema==4.23.0",
    "pydantic==2.10.6",
    "pyyaml==6.0.2",
    "nltk==3.9.1",
    "sqlparse==0.5.3",
    "rdkit==2024.9.6",
    "scikit-bio==0.6.3",
    "ast-grep-py==0.36.2",
)
"""The packages of OpenAI's Python grader image `2025-05-08`
(https://platform.openai.com/docs/guides/graders#python-graders)."""

SETS: dict[str, tuple[str, ...]] = {"openai-grader": OPENAI_GRADER}
"""Name -> packages. The corpora of nltk that OpenAI's image brings are no packages and not part of it."""

_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+")
_FROM_INDEX = "packages come from the package index of this machine alone"
_INDEX_PLACE = "which index that is, uv's variables (UV_DEFAULT_INDEX, UV_INDEX) or pip's configuration say"
_REFUSED_OPTIONS = {
    "-e": "it installs from a folder, which runs the folder's build script",
    "--editable": "it installs from a folder, which runs the folder's build script",
    "-r": "write the file's entries into the list",
    "--requirement": "write the file's entries into the list",
    "-c": "write the versions into the list",
    "--constraint": "write the versions into the list",
    "-i": _INDEX_PLACE,
    "--index-url": _INDEX_PLACE,
    "--extra-index-url": _INDEX_PLACE,
    "-f": _INDEX_PLACE,
    "--find-links": _INDEX_PLACE,
    "--no-index": _INDEX_PLACE,
    "--trusted-host": "it switches off the check of who sends the packages",
    "--no-binary": "only wheels are installed: building runs code of the package on this machine",
    "--config-settings": "only wheels are installed: building runs code of the package on this machine",
    "--pre": "name the version you want: name==2.0rc1",
    "--hash": "the exact versions are recorded with the run, without hashes",
}
_FILE = re.compile(r"[/\\]|^[.~]|\.(whl|txt|toml|tar\.gz)$")


def read_requirement(text: str) -> str:
    """An entry in its one normal form; ValueError says why it is refused.

    >>> read_requirement("Scikit_Learn [b,a] < 2, >=1.6"), read_requirement("openai-grader")
    ('scikit-learn[a,b]<2,>=1.6', 'openai-grader')
    >>> read_requirement("-e ./mine")
    Traceback (most recent call last):
    ValueError: "-e ./mine": -e is not taken: it installs from a folder, which runs the folder's build script
    """
    reason = _refusal(text.strip())
    if reason:
        raise ValueError(f'"{text}": {reason}')
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        requirement = Requirement(text.strip())
    except InvalidRequirement as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(f'"{text}" is no name with version specifiers, like numpy or numpy>=2,<3: {problem}') from None
    requirement.name = canonicalize_name(requirement.name)
    normal = str(requirement)
    if requirement.name in SETS and normal != requirement.name:
        raise ValueError(f'"{text}": {requirement.name} is a set of packages: write its name alone')
    return normal


def read_requirements(texts: Sequence[str]) -> tuple[str, ...]:
    """All entries in normal form, sorted, each once."""
    return tuple(sorted({read_requirement(text) for text in texts}))


def check_pins(packages: object) -> tuple[str, ...]:
    """Recorded packages, each `name==version` and nothing else: they become lines of a file that uv reads, where more
    would be options, addresses, or further lines. ValueError names the first that is not.

    >>> check_pins(["numpy==2.2.4", "torch==2.1.0+cpu"])
    ('numpy==2.2.4', 'torch==2.1.0+cpu')
    >>> check_pins(["a @ file:///home/me/a"])
    Traceback (most recent call last):
    ValueError: 'a @ file:///home/me/a' is no name==version
    """
    if not isinstance(packages, list | tuple):
        raise ValueError(f"{packages!r:.200} is no list of name==version")
    for package in packages:
        if not isinstance(package, str) or not _PIN.fullmatch(package):
            raise ValueError(f"{package!r:.200} is no name==version")
    return tuple(packages)


def _refusal(text: str) -> str:
    """Why an entry is refused by its form; "" when it may be a requirement."""
    if not text:
        return "an entry must not be empty"
    option = re.search(r"(?:^|\s)(--?[A-Za-z][\w-]*)", text)
    if option:
        return f"{option[1]} is not taken: {_REFUSED_OPTIONS.get(option[1], 'options of pip have no meaning here')}"
    if "://" in text or "@" in text:
        return f"addresses are not taken: {_FROM_INDEX}, and from it they can be installed again on a resume"
    if _FILE.search(text.partition(";")[0]):
        return f"files and folders are not taken: {_FROM_INDEX}"
    return "variables are not replaced here" if "$" in text else ""


__all__ = ["OPENAI_GRADER", "SETS", "check_pins", "read_requirement", "read_requirements"]
