"""Incremental detection against a search in the whole decoded text after every token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.inference.stop_strings import StopStrings

PIECES = [bytes([b]) for b in "aé€😀b".encode()] + [b"ab", b"\xa9\xc3", b" a", "é€".encode(), b"", b"b\xe2"]


def decode(ids) -> str:
    """Bytes of the pieces, decoded as byte-level tokenizers do; the empty piece is like a special token left out."""
    return b"".join(PIECES[i] for i in ids).decode(errors="replace")


def decode_like_sentencepiece(ids) -> str:
    """Drops the space before the first token."""
    return decode(ids).removeprefix(" ")


@pytest.mark.parametrize("decoder", [decode, decode_like_sentencepiece])
@given(
    token_ids=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=60),
    stops=st.lists(st.text("aé€😀b ", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_found_at_the_first_token_that_completes_one(decoder, token_ids, stops):
    finder = StopStrings(stops, decoder)
    for t in range(1, len(token_ids) + 1):
        text = decoder(token_ids[:t])
        places = [text.find(stop) for stop in stops if stop in text]
        assert finder.text_before(token_ids[:t]) == (text[: min(places)] if places else None)
        if places:
            return


def test_a_character_spread_over_tokens_is_seen_when_complete():
    finder = StopStrings(["😀"], decode)
    emoji = list(range(6, 10))  # its four bytes
    assert decode(emoji) == "😀"
    assert [finder.text_before([0, *emoji[:n]]) for n in range(1, 5)] == [None, None, None, "a"]


def test_tokens_without_text_do_not_hide_the_start_of_a_stop_string():
    finder = StopStrings(["ab"], decode)
    silent, a, b = PIECES.index(b""), PIECES.index(b"a"), PIECES.index(b"b")
    assert finder.text_before([b, a, *[silent] * 500, b]) == "b"


def test_most_tokens_are_not_decoded_again():
    calls = []

    def counted(ids):
        calls.append(len(ids))
        return decode(ids)

    finder = StopStrings(["b"], counted)
    for t in range(1, 400):
        assert finder.text_before([0] * t) is None
    assert calls == [2]  # the token once, in company


def test_without_stop_strings_nothing_is_decoded():
    def refuse(ids):
        raise AssertionError(ids)

    assert StopStrings((), refuse).text_before([1, 2]) is None
