"""What may stand in `reward_fns.runtime.packages`, and the reason for everything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.config_file import load_config
from reinforge.errors import ConfigError
from reinforge.requirements import OPENAI_GRADER, read_requirement, read_requirements


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("numpy", "numpy"),
        (" Scikit_Learn ", "scikit-learn"),
        ("numpy >=2, <3", "numpy<3,>=2"),
        ("torch==2.13.0+cpu", "torch==2.13.0+cpu"),
        ("Pillow[webp,avif]~=12.0", "pillow[avif,webp]~=12.0"),
        ("tomli; python_version<'3.11'", 'tomli; python_version < "3.11"'),
        ("numpy===2.0rc1", "numpy===2.0rc1"),
        ("OpenAI_Grader", "openai-grader"),
    ],
)
def test_names_with_versions_extras_and_markers_are_taken(written, normal):
    assert read_requirement(written) == normal


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "must not be empty"),
        ("-e .", "-e is not taken: it installs from a folder, which runs the folder's build script"),
        ("--editable=./mine", "--editable is not taken"),
        ("-r requirements.txt", "-r is not taken: write the file's entries into the list"),
        ("--index-url https://example.org/simple", "--index-url is not taken: which index that is, uv's variables"),
        ("numpy --extra-index-url=https://example.org", "--extra-index-url is not taken"),
        ("numpy --hash=sha256:00", "--hash is not taken"),
        ("--no-binary :all:", "building runs code of the package"),
        ("numpy --some-new-option", "--some-new-option is not taken: options of pip"),
        ("git+https://example.org/mine.git", "addresses are not taken"),
        ("mine @ https://example.org/mine-1.0-py3-none-any.whl", "addresses are not taken"),
        ("mine @ file:///home/me/mine", "addresses are not taken"),
        ("mine@1.0", "addresses are not taken"),
        ("./mine", "files and folders are not taken"),
        ("/home/me/mine", "files and folders are not taken"),
        ("~/mine", "files and folders are not taken"),
        ("..", "files and folders are not taken"),
        ("C:\\mine", "files and folders are not taken"),
        ("mine-1.0-py3-none-any.whl", "files and folders are not taken"),
        ("mine-1.0.tar.gz", "files and folders are not taken"),
        ("requirements.txt", "files and folders are not taken"),
        ("numpy==${VERSION}", "variables are not replaced"),
        ("numpy=2", "is no name with version specifiers"),
        ("numpy pandas", "is no name with version specifiers"),
        ("numpy\n-e .", "-e is not taken"),
        ("numpy\npandas", "is no name with version specifiers"),
        ("numpy # fast", "is no name with version specifiers"),
        ("openai-grader==1", "is a set of packages: write its name alone"),
    ],
)
def test_everything_else_is_refused_with_its_reason(written, reason):
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        read_requirement(written)
    assert str(caught.value).startswith(f'"{written}"')


@given(st.text(max_size=30))
def test_whatever_is_taken_is_one_line_that_means_itself(text):
    try:
        normal = read_requirement(text)
    except ValueError:
        return
    assert read_requirement(normal) == normal
    assert len(normal.splitlines()) == 1
    assert normal[0].isalnum()
    assert "://" not in normal


def test_order_and_repetition_mean_nothing():
    assert read_requirements(["numpy", "Deepdiff", "deepdiff"]) == ("deepdiff", "numpy")


def test_the_openai_set_is_sixteen_exact_versions():
    assert len(OPENAI_GRADER) == 16
    assert read_requirements(OPENAI_GRADER) == tuple(sorted(OPENAI_GRADER))
    assert all("==" in pin for pin in OPENAI_GRADER)


def test_a_config_tells_the_line_of_a_refused_entry(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(
        "base_model: m\nreward_fns:\n  functions: {f: f.py:f}\n  runtime:\n    packages: [numpy, git+https://a.b/c]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config([file])
    assert "train.yaml:5" in str(caught.value)
    assert "addresses are not taken" in str(caught.value)


def test_both_ways_to_write_it_are_equal():
    assert RewardFunctionsRuntimeConfig(packages=["B", "a"]) == RewardFunctionsRuntimeConfig(packages=("a", "b"))
