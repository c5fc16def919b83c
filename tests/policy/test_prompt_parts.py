"""The tree of what prompts have in common."""

from hypothesis import given
from hypothesis import strategies as st

from reinforge.policy.prompt_parts import Part, common_length, prompt_parts

token_lists = st.lists(st.integers(0, 2), max_size=8).map(tuple)


def own(part: Part) -> tuple[int, ...]:
    return part.token_ids[part.start :]


@given(st.lists(token_lists, max_size=9), st.integers(0, 12))
def test_the_parts_on_the_way_to_its_end_are_a_prompt(prompts, min_saved):
    parts, ends = prompt_parts(prompts, min_saved)
    for prompt, end in zip(prompts, ends, strict=True):
        assert parts[end].token_ids == prompt
        pieces, place = [], end
        while place is not None:
            assert parts[place].parent is None or parts[place].parent < place
            assert parts[place].depth == len(list(ancestors(parts, place)))
            pieces.append(own(parts[place]))
            place = parts[place].parent
        assert sum(reversed(pieces), ()) == prompt


def ancestors(parts: list[Part], place: int):
    while (parent := parts[place].parent) is not None:
        yield parent
        place = parent


@given(st.lists(token_lists, min_size=1, max_size=9), st.integers(1, 12))
def test_every_fork_pays_and_equal_prompts_are_run_once(prompts, min_saved):
    parts, ends = prompt_parts(prompts, min_saved)
    assert len({part.token_ids for part in parts}) == len(parts)
    for place, part in enumerate(parts):
        behind = [prompt for prompt, end in zip(prompts, ends, strict=True) if place in ancestors(parts, end)]
        if behind:
            here = [prompt for prompt in prompts if prompt == part.token_ids]
            assert len(own(part)) * (len(behind) + len(here) - 1) >= min_saved
    assert set(ends) | {a for end in ends for a in ancestors(parts, end)} == set(range(len(parts)))


@given(st.lists(token_lists, min_size=1, max_size=9))
def test_with_no_minimum_no_token_is_run_twice(prompts):
    parts, _ = prompt_parts(prompts, 1)
    beginnings = {prompt[:length] for prompt in prompts for length in range(1, len(prompt) + 1)}
    assert sum(len(own(part)) for part in parts) == len(beginnings)


def test_a_growing_conversation_is_a_chain_longer_than_python_recurses():
    prompts = [tuple(range(length)) for length in range(1100, 0, -1)]
    parts, ends = prompt_parts(prompts, 1)
    assert [parts[end].depth for end in ends] == list(range(1099, -1, -1))


@given(token_lists, token_lists)
def test_common_length(one, other):
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_length(one, other) == expected
