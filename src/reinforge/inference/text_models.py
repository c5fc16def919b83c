"""Models that judge a text: similarity by an embedding model or a cross-encoder, fluency by a language model.

Built-in graders (`type: similarity`, `type: fluency`) that run in a long-lived worker of their own: the model's folder
is read once, read-only, and nothing of it runs in the trainer. Folders are those that Hugging Face tools write:
safetensors, a config and a tokenizer; code that comes with a model is never run. torch is imported when a text is
judged: who only checks a grader's options reads the signatures of this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reinforge.grading.builtin.result import Result, refused

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "pooling_mode_max_tokens": "max"}
"""Of sentence-transformers, as its `Pooling` module writes them."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Of sentence-transformers that a cosine of embeddings needs; any other would change the embedding."""
DEFAULT_WINDOW = 512
Kind = Literal["auto", "embedding", "cross_encoder"]

# B texts, T tokens of the longest, D features, V vocabulary.


def similarity(*, input: object, reference: object, model: str, kind: Kind = "auto", fingerprint: str = "") -> Result:
    """How close two texts are in meaning (S3-018): the cosine of their embeddings, -1..1, or what a cross-encoder with
    one output says, 0..1 (the sigmoid of its logit, as models trained on STS-B are read).

    `model` is a local folder. auto: a cross-encoder where its config names a sequence classifier. An empty completion
    is similar to nothing: 0. Texts beyond the model's window are cut, which `metrics["cut"]` tells. `fingerprint` is
    filled in when a config is read: with another model in the folder a run does not go on.
    """
    if not isinstance(input, str) or not input.strip():
        return refused("the completion is empty")
    if not isinstance(reference, str) or not reference.strip():
        raise ValueError(f"reference must be a text to compare with, not {reference!r:.80}")
    measure, window = _similarity_of(model, kind)
    score, num_tokens = measure(input, reference)
    return Result(score, metrics={"cut": float(num_tokens > window)})


def fluency(
    *,
    input: object,
    model: str,
    context: str = "",
    good: float = 10.0,
    bad: float = 1000.0,
    fingerprint: str = "",
) -> Result:
    """How natural a text is to a language model (S3-020): 1 at a perplexity of `good` or below, 0 at `bad` or above, in
    between linear in its logarithm.

        perplexity = exp(-1/T sum_t log p(token_t | context, earlier tokens))

    `model` is a local folder. Perplexity depends on the model's vocabulary: choose `good` and `bad` by what it gives
    for texts you like. `context` comes before the text and is not counted; without it the model's first token stands
    there, and where it has none, the text's first token is not counted. A text beyond the window is judged by its end.
    `fingerprint` as for `similarity`.
    """
    if not 1 <= good < bad:
        raise ValueError(f"good = {good:g} must be at least 1 and below bad = {bad:g}")
    if not isinstance(input, str) or not input.strip():
        return refused("the completion is empty")
    nll, num_tokens = _negative_log_likelihood(model, context, input)
    if num_tokens == 0:
        return refused("the completion is a single token: nothing to predict")
    mean = nll / num_tokens
    score = (math.log(bad) - mean) / (math.log(bad) - math.log(good))
    perplexity = math.exp(min(mean, 700.0))
    return Result(min(max(score, 0.0), 1.0), f"perplexity {perplexity:.4g}", {"perplexity": perplexity})


def load(grader: str, options: Mapping[str, Any]) -> None:
    """Load the model that `similarity` or `fluency` will ask, with these options."""
    if grader == "similarity":
        _similarity_of(options["model"], options.get("kind", "auto"))
    else:
        _language_model(options["model"])


def _negative_log_likelihood(folder: str, context: str, text: str) -> tuple[float, int]:
    """Of the text's tokens, in nats, and how many of them could be predicted."""
    loaded = _language_model(folder)
    own = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    before = loaded.tokenizer(context, add_special_tokens=False)["input_ids"] if context else []
    first = loaded.tokenizer.bos_token_id
    before = ([] if first is None else [first]) + before
    ids = (before + own)[-loaded.window :]
    num_predicted = min(len(own), len(ids) - 1)
    if num_predicted <= 0:
        return 0.0, 0
    import torch

    with torch.inference_mode():
        logits_1TV = loaded.model(input_ids=torch.tensor([ids])).logits.float()
        logprobs_TV = logits_1TV[0, -num_predicted - 1 : -1].log_softmax(-1)
        logprobs_T = logprobs_TV.gather(-1, torch.tensor(ids[-num_predicted:])[:, None])[:, 0]
    return -float(logprobs_T.double().sum()), num_predicted


class _Loaded:
    """A model with its tokenizer and window in tokens."""

    def __init__(self, folder: str, kind: str) -> None:
        """`kind` is one of the Auto classes of transformers."""
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loader = getattr(transformers, kind)
        self.model: Any = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        positions = getattr(self.model.config, "max_position_embeddings", None) or DEFAULT_WINDOW
        self.window = min(int(positions), int(self.tokenizer.model_max_length))

    def encode(self, *texts: str) -> tuple[Any, int]:
        """Model inputs of one or two texts as one sequence, cut to the window; and the length before."""
        num_tokens = len(self.tokenizer(*texts)["input_ids"])
        return self.tokenizer(*texts, return_tensors="pt", truncation=True, max_length=self.window), num_tokens


@lru_cache(maxsize=1)
def _language_model(folder: str) -> _Loaded:
    return _Loaded(_existing(folder), "AutoModelForCausalLM")


@lru_cache(maxsize=1)
def _similarity_of(folder: str, kind: Kind) -> tuple[Callable[[str, str], tuple[float, int]], int]:
    """The measure of a folder: two texts -> (similarity, tokens of the longer input), and its window."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(_existing(folder), local_files_only=True)
    is_classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if kind == "cross_encoder" or (kind == "auto" and is_classifier):
        if config.num_labels != 1:
            raise ValueError(f"{folder} has {config.num_labels} outputs; a cross-encoder for similarity has one")
        loaded = _Loaded(folder, "AutoModelForSequenceClassification")
        return lambda text, other: _cross_encoded(loaded, text, other), loaded.window
    pooling = _pooling(Path(folder))
    embedder = _Loaded(folder, "AutoModel")
    return lambda text, other: _cosine(embedder, pooling, text, other), embedder.window


def _cross_encoded(loaded: _Loaded, text: str, other: str) -> tuple[float, int]:
    import torch

    inputs, num_tokens = loaded.encode(text, other)
    with torch.inference_mode():
        return float(loaded.model(**inputs).logits.sigmoid()), num_tokens


def _cosine(loaded: _Loaded, pooling: str, text: str, other: str) -> tuple[float, int]:
    import torch

    lengths, embeddings = [], []
    for each in (text, other):  # one by one: a batch's padding would change the last digits
        inputs, num_tokens = loaded.encode(each)
        lengths.append(num_tokens)
        with torch.inference_mode():
            embeddings.append(_pooled(loaded.model(**inputs).last_hidden_state, pooling))
    cosine = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
    return min(max(float(cosine), -1.0), 1.0), max(lengths)


def _pooled(hidden_1TD: Tensor, pooling: str) -> Tensor:
    """[D] One embedding of a text without padding."""
    if pooling == "first":
        return hidden_1TD[0, 0]
    return hidden_1TD[0].amax(0) if pooling == "max" else hidden_1TD[0].mean(0)


def _pooling(folder: Path) -> str:
    """How the folder's embeddings are made: as its sentence-transformers files say, else the mean of all tokens."""
    if not (folder / "modules.json").exists():
        return "mean"
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    unknown = [kind for kind in kinds if kind not in MODULES]
    if unknown:
        raise ValueError(f"{folder} has a module {unknown[0]}; only {', '.join(MODULES)} are known here")
    settings = json.loads((folder / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode") and value is True]
    named = settings.get("pooling_mode")
    if isinstance(named, str):  # newer files name it
        asked = [f"pooling_mode_{named}_tokens" if named != "cls" else "pooling_mode_cls_token"]
    if len(asked) != 1 or asked[0] not in POOLINGS:
        raise ValueError(f"{folder} pools by {asked}; one of {', '.join(POOLINGS)} is known here")
    return POOLINGS[asked[0]]


def _existing(folder: str) -> str:
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"there is no model in {folder}: it needs a config.json")
    return folder
