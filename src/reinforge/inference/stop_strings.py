"""Finding stop strings in a growing completion without decoding all of it after every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are no complete character."""


class StopStrings:
    """Strings that end a completion, found across token borders and in characters spread over several tokens.

    A stop string is completed by a token that holds its last character, or a fragment of it. That is looked up per
    token id, so most tokens cost one dictionary access; the others a decode of the last few tokens.

    >>> stops = StopStrings(("ab",), lambda ids: "".join("abc"[i] for i in ids))
    >>> stops.text_before([2, 0]), stops.text_before([2, 0, 1])
    (None, 'c')
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._stops = tuple(stops)
        self._decode = decode
        self._longest = max((len(stop) for stop in stops), default=0)
        self._last_characters = {stop[-1] for stop in stops} | {UNDECODABLE}
        self._may_complete: dict[int, bool] = {}

    def text_before(self, token_ids: Sequence[int]) -> str | None:
        """The text before the first stop string, None when the last token completes none."""
        if not self._stops or not self._is_candidate(token_ids[-1]) or not self._is_in_tail(token_ids):
            return None
        text = self._decode(token_ids)
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else None

    def _is_candidate(self, token_id: int) -> bool:
        may = self._may_complete.get(token_id)
        if may is None:
            # Twice, because some decoders drop the space before a first token.
            text = self._decode((token_id, token_id))
            may = self._may_complete[token_id] = not self._last_characters.isdisjoint(text)
        return may

    def _is_in_tail(self, token_ids: Sequence[int]) -> bool:
        """Decode a tail with more characters than any stop string has, and look there."""
        num_tokens = 2 * self._longest + 8
        while True:
            tail = self._decode(token_ids[-num_tokens:])
            if any(stop in tail for stop in self._stops):
                return True
            if num_tokens >= len(token_ids) or len(tail) > self._longest + 4:
                return False
            num_tokens *= 2
