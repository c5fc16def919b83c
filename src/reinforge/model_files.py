"""The files of a model on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

READ = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*/config.json")
"""Of its folder: weights, config, tokenizer, chat template, pooling."""


def fingerprint_model(folder: Path) -> str:
    """Of every file a model is read from: whole up to 64 MiB, beyond that its size and 64 blocks spread over it, which
    is quick for gigabytes and sees any training of all layers."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}".encode())
        size, block = path.stat().st_size, 1 << 20
        with path.open("rb") as file:
            for start in range(0, size, block if size <= 64 * block else size // 64):
                file.seek(start)
                digest.update(file.read(block))
    return digest.hexdigest()
