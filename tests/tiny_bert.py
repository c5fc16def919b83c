"""Folders of BERT models with random weights and a vocabulary of eleven words."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertTokenizerFast, PreTrainedModel

WORDS = ["the", "patient", "has", "fever", "a", "cold", "and", "no", "pain", "in", "chest"]


def make_bert(folder: Path, kind: type[PreTrainedModel], **changes: object) -> Path:
    """Write a model of this class, equal at every call."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.5,
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return folder
