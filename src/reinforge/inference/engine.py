"""The sampler: many completions decoded together, rows entering and leaving between steps. A step gives each row one
token or, where few rows are left and their next tokens can be guessed, several (`speculation.py`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reinforge.config import LoraParams, SamplingParams
from reinforge.errors import ModelError
from reinforge.inference.adapter_bank import AdapterBank, AdapterCall
from reinforge.inference.decoders import Decoder, Extend, NetworkDecoder, PlainDecoder, SlotDecoder
from reinforge.inference.fixed_decoder import FixedDecoder, fixed_shapes_pay
from reinforge.inference.kept_keys import KeptKeys
from reinforge.inference.sampling import Draws, draw
from reinforge.inference.scheduler import Row, Scheduler
from reinforge.inference.speculation import MAX_ROWS, Drafts, Speculation, guesses_pay, num_accepted
from reinforge.inference.stop_strings import StopStrings
from reinforge.insight.memory import PREFILL_TOKENS
from reinforge.policy.counter_random import stream_key, uniform
from reinforge.policy.network import Network
from reinforge.policy.out_of_memory import telling_when_memory_runs_out
from reinforge.types import Adapter, Completion, SampleRequest

Token = tuple[float, float, float]
"""Token id, logprob and sampled logprob."""

_FEWER_SLOTS = "Go on with fewer at once: reinforge runs resume RUN -o slots=N (in a new run: slots in the config)."


class Engine:
    """Implements `roles.Sampler` on one model in this process.

    The randomness of a token is a function of (request key, generation, position), so a completion does not depend on
    what it shares a batch with, beyond the rounding of matrix products.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        sampling_params: SamplingParams,
        max_tokens: int,
        eos_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        slots: int,
        shared_prefix: bool,
        load_weights: Callable[[Adapter], None] | None = None,
        network: Network | None = None,
        bank: AdapterBank | None = None,
        keep_bytes: int = 0,
    ) -> None:
        """`max_tokens` is the longest completion. `decode` leaves out special tokens. `load_weights` puts an adapter
        into `model` (see `adapters.py`); without it the weights are fixed. With `shared_prefix` the model must use
        shared-prefix attention; without it every token costs a forward pass over the whole sequence. `network` is run
        instead of `model`, on the same weights. `bank` holds the adapters that requests may name. `keep_bytes` of keys
        and values of recent rows are kept for later calls that begin with the same tokens, until other weights come;
        then the rounding of a result depends on the calls before it."""
        self._model = model.eval()
        self._params = sampling_params
        self._max_tokens = max_tokens
        self._eos_ids = eos_ids
        self._decode = decode
        self._stops = StopStrings(sampling_params.stop, decode)
        self._slots = slots
        self._network, self._shared_prefix = network, shared_prefix
        self._idle_decoder: Decoder | None = None
        self._keep_bytes = keep_bytes
        self._kept = self._nothing_kept()
        self._load_weights = load_weights
        self._bank = bank
        self._policy_version = 0
        self._counts = Counter[str]()

    def load(self, adapter: Adapter) -> None:
        """Sample from this adapter from the next call on."""
        if self._load_weights is None:
            raise ModelError("This sampler was made for a model without an adapter.", hint="Load the base with LoRA.")
        self._kept = self._nothing_kept()
        self._load_weights(adapter)
        self._policy_version = adapter.version

    def add_adapter(self, name: str, adapter: Adapter, lora: LoraParams) -> None:
        """Hold an adapter that requests may name; it replaces one of the same name for later calls."""
        self._held().add(name, adapter, lora.lora_alpha)

    def remove_adapter(self, name: str) -> None:
        """Let go of an adapter; a call that has begun keeps it."""
        self._held().remove(name)

    def _held(self) -> AdapterBank:
        if self._bank is None:
            raise ModelError("This sampler holds no adapters besides its own.", hint="Make it with a bank.")
        return self._bank

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        """Yield (place of the request, completion) as completions end."""
        with telling_when_memory_runs_out("while completions were drawn", _FEWER_SLOTS):
            yield from self._sample(requests)

    def _sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        num_rows = sum(request.num_generations for request in requests)
        if not num_rows:
            return
        longest = max(request.prompt.num_tokens for request in requests)
        num_slots = min(self._slots, num_rows)
        adapters = self._adapters_of(requests)
        decoder = self._take_decoder(num_slots, longest + self._max_tokens)
        reusable: Decoder | None = decoder
        speculation = None
        if self._params.speculation and decoder.extend is not None and guesses_pay(decoder.device.type):
            speculation = Speculation(requests, self._max_tokens), decoder.extend
        sampling = _Sampling(requests, num_slots, decoder, adapters, self._policy_version, self._kept, speculation)
        try:
            while not sampling.scheduler.is_done:
                sampling.admit()
                yield from self._leave(sampling, sampling.step(self._params))
        except (ModelError, RuntimeError, MemoryError):
            # NaN in a slot would outlive its row: a mask does not hide it. And slots may have grown in part.
            reusable = None
            raise
        finally:
            decoder.clear()
            self._idle_decoder = reusable
            self._counts.update(sampling.counts)

    def take_figures(self) -> dict[str, float]:
        """Metrics (`speed/...`) of speculation since they were last asked for."""
        counts, self._counts = self._counts, Counter()
        if not counts["tokens"] or not self._params.speculation:
            return {}
        figures = {"speed/guessed_share": counts["accepted"] / counts["tokens"]}
        if counts["drafted"]:
            figures["speed/draft_accepted_share"] = counts["accepted"] / counts["drafted"]
        return figures

    def _adapters_of(self, requests: Sequence[SampleRequest]) -> AdapterCall:
        names = [request.adapter for request in requests]
        if self._bank is None and not any(names):
            return AdapterCall.none(len(requests))
        return self._held().call(names)

    def _nothing_kept(self) -> KeptKeys | None:
        """A new store, so that an unfinished call with earlier weights writes into none that is read."""
        return KeptKeys(self._keep_bytes) if self._keep_bytes else None

    def _take_decoder(self, num_slots: int, capacity: int) -> Decoder:
        """The decoder of the last call where it is large enough and not in use by an unfinished one."""
        decoder, self._idle_decoder = self._idle_decoder, None
        if decoder is None or not decoder.fits(num_slots, capacity):
            decoder = None  # frees its memory first
            with torch.inference_mode():
                decoder = self._make_decoder(num_slots, capacity)
        return decoder

    def _make_decoder(self, num_slots: int, capacity: int) -> Decoder:
        if self._network is not None:
            if self._bank is None and fixed_shapes_pay(self._network):
                return FixedDecoder(self._network, num_slots, capacity)
            return NetworkDecoder(self._network, num_slots)
        if self._shared_prefix:
            return SlotDecoder(self._model, num_slots, capacity)
        return PlainDecoder(self._model, num_slots)

    def _leave(self, sampling: _Sampling, drawn: Sequence[Sequence[Token]]) -> list[tuple[int, Completion]]:
        """Give every live row its tokens; take out the rows that end with one."""
        ended: list[int] = []
        completions: list[tuple[int, Completion]] = []
        for slot, (row, tokens) in enumerate(zip(sampling.scheduler.live, drawn, strict=True)):
            completion = self._extended(row, tokens)
            if completion is not None:
                ended.append(slot)
                completions.append((row.request, completion))
        sampling.end(ended)
        return completions

    def _extended(self, row: Row, tokens: Sequence[Token]) -> Completion | None:
        """The completion if one of its new tokens ends it; those after that one are dropped."""
        for token, logprob, sampled in tokens:
            row.next_token = int(token)
            row.token_ids.append(row.next_token)
            row.logprobs.append(logprob)
            row.sampled_logprobs.append(sampled)
            completion = self._completion(row)
            if completion is not None:
                return completion
        return None

    def _completion(self, row: Row) -> Completion | None:
        """The completion if its latest token ends it: an EOS token first, then a stop string, then the limit."""
        if row.next_token in self._eos_ids:
            return self._finished(row, self._decode(row.token_ids[:-1]), is_stop=True)
        text = self._stops.text_before(row.token_ids)
        if text is not None:
            return self._finished(row, text, is_stop=True)
        if len(row.token_ids) == self._max_tokens:
            return self._finished(row, self._decode(row.token_ids), is_stop=False)
        return None

    def _finished(self, row: Row, text: str, *, is_stop: bool) -> Completion:
        _check_logprobs(row, row.logprobs)
        return Completion(
            generation=row.generation,
            token_ids=tuple(row.token_ids),
            text=text,
            finish_reason="stop" if is_stop else "length",
            logprobs=tuple(row.logprobs),
            sampled_logprobs=tuple(row.sampled_logprobs),
            policy_version=row.policy_version,
        )


class _Sampling:
    """What one call of `sample` keeps between its steps."""

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        num_slots: int,
        decoder: Decoder,
        adapters: AdapterCall,
        policy_version: int,
        kept: KeptKeys | None,
        speculation: tuple[Speculation, Extend] | None,
    ) -> None:
        """`speculation` comes with the decoder's way to run a draft."""
        owners = [adapters.owner(place) for place in range(len(requests))]
        prefixes = [request.prompt.token_ids[:-1] for request in requests]
        self.scheduler = Scheduler(requests, num_slots, decoder.begin(prefixes, owners, kept))
        self.counts = Counter[str]()
        """Of tokens: all that were given to rows, those drafted, those of them accepted."""
        self._requests = requests
        self._adapters, self._policy_version = adapters, policy_version
        self._decoder = decoder
        self._speculation = speculation
        self._prefixes: dict[int, Any] = {}

    @torch.inference_mode()
    def admit(self) -> None:
        """Let waiting rows into free slots, prefilling their prompts where that is still to be done."""
        first_slot = len(self.scheduler.live)
        admitted = self.scheduler.admit()
        for chunk in self.scheduler.prefills(admitted, self._prefixes, PREFILL_TOKENS):
            for places in self._adapters.apart(chunk):
                self._prefill(places)
        for slot, row in enumerate(admitted, start=first_slot):
            self._decoder.place(slot, self._prefixes[row.request])
            row.stream = stream_key(*self._requests[row.request].key, row.generation)
            row.policy_version = self._adapters.version(row.request, self._policy_version)
            if self.scheduler.place(row):
                del self._prefixes[row.request]

    def _prefill(self, places: Sequence[int]) -> None:
        """Requests of one adapter."""
        requests = [self._requests[place] for place in places]
        with self._adapters.all_of(places[0]):
            prefixes = self._decoder.prefill(
                [request.prompt.token_ids[:-1] for request in requests],
                [request.num_generations for request in requests],
                self._adapters.owner(places[0]),
            )
        self._prefixes.update(zip(places, prefixes, strict=True))

    @torch.inference_mode()
    def step(self, params: SamplingParams) -> list[list[Token]]:
        """Decode one token for every live row, or more."""
        live = self.scheduler.live
        if self._speculation is None or len(live) > MAX_ROWS:
            return [[token] for token in self._pass(live, params)]
        speculation, extend = self._speculation
        drafts = speculation.drafts(live)
        drawn = self._verified(live, drafts, params, extend)
        speculation.count(drafts, [[int(token) for token, _, _ in tokens] for tokens in drawn])
        return drawn

    def _pass(self, live: Sequence[Row], params: SamplingParams) -> list[Token]:
        """One token for each row."""
        device = self._decoder.device
        lengths = [row.num_cached for row in live]
        state = [
            [row.next_token for row in live],
            lengths,
            [row.stream for row in live],
            [len(row.token_ids) for row in live],
        ]
        tokens_B, lengths_B, streams_B, positions_B = torch.tensor(state, device=device)
        with self._adapters.rows_of([row.request for row in live]):
            logits_BV = self._decoder.step(tokens_B, lengths_B, max(lengths))
        return _to_tuples(draw(logits_BV, uniform(streams_B, positions_B), params, _greedy(live, device)))

    def _verified(
        self, live: Sequence[Row], drafts: Drafts, params: SamplingParams, extend: Extend
    ) -> list[list[Token]]:
        """As many tokens for each row as its draft is right, and one more.

        At every place of the draft the token is drawn that would be drawn there without it, from the same logits with
        the same random number. The first that is not the drafted one is the row's last: what comes after it was
        computed behind another token.
        """
        if not drafts.length:
            return [[token] for token in self._pass(live, params)]
        device, T = self._decoder.device, 1 + drafts.length
        guesses = [list(draft.tokens[: drafts.length]) for draft in drafts.of_rows]
        padded = [
            [row.next_token, *guess] + [row.next_token] * (drafts.length - len(guess))
            for row, guess in zip(live, guesses, strict=True)
        ]
        state = [[row.num_cached, row.stream, len(row.token_ids)] for row in live]
        lengths_B, streams_B, positions_B = torch.tensor(state, device=device).T
        with self._adapters.rows_of([row.request for row in live for _ in range(T)]):
            logits_MV = extend(torch.tensor(padded, device=device), lengths_B)
        uniform_BT = uniform(streams_B[:, None], positions_B[:, None] + torch.arange(T, device=device))
        greedy_B = _greedy(live, device)
        greedy_M = None if greedy_B is None else greedy_B.repeat_interleave(T)
        tokens = _to_tuples(draw(logits_MV, uniform_BT.flatten(), params, greedy_M))
        of_rows = [tokens[start : start + T] for start in range(0, len(tokens), T)]
        return [self._accepted(*row) for row in zip(live, guesses, of_rows, strict=True)]

    def _accepted(self, row: Row, guess: Sequence[int], tokens: Sequence[Token]) -> list[Token]:
        # NaN behind a wrong guess must not stay in the slot unseen.
        _check_logprobs(row, [logprob for _, logprob, _ in tokens])
        num = num_accepted(guess, [int(token) for token, _, _ in tokens])
        self.counts["drafted"] += len(guess)
        self.counts["accepted"] += num
        return list(tokens[: num + 1])

    @torch.inference_mode()
    def end(self, slots: Sequence[int]) -> None:
        """Take out rows; the last live ones move into their slots."""
        live = self.scheduler.live
        for slot in slots:
            place, drawn = live[slot].request, live[slot].token_ids
            token_ids = (*self._requests[place].prompt.token_ids, *drawn[:-1])
            self._decoder.leave(slot, token_ids, self._adapters.owner(place))
            self.counts["tokens"] += len(drawn)
            if self._speculation is not None:
                self._speculation[0].end(live[slot])
        lengths = [row.num_cached for row in live]
        for source, target in self.scheduler.end(slots):
            self._decoder.move(source, target, lengths[source])


def _greedy(live: Sequence[Row], device: torch.device) -> Tensor | None:
    """[B]; None where no row is."""
    greedy = [row.greedy for row in live]
    return torch.tensor(greedy, device=device) if any(greedy) else None


def _to_tuples(draws: Draws) -> list[Token]:
    """In one device transfer; float64 holds token ids and float32 exactly."""
    fields = (draws.token_ids_B, draws.logprobs_B, draws.sampled_logprobs_B)
    return list(zip(*torch.stack([tensor.double() for tensor in fields]).tolist(), strict=True))


def _check_logprobs(row: Row, logprobs: Sequence[float]) -> None:
    if any(map(math.isnan, logprobs)):
        raise ModelError(
            f"The model's logits are NaN after {row.num_prefix + 1} prompt tokens.",
            hint="Lower learning_rate, or set dtype = float32 if the base is float16.",
        )
