"""MiniLM's WordPiece tokens: the unit of a summary's budget, because the models that read summaries count in it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from search_env.models.embeddings import model_directory


@lru_cache(maxsize=200_000)
def wordpiece_count(text: str) -> int:
    """Return the number of a text's tokens, without those that a model puts around it.

    Raises EmbeddingError if the package with the vocabulary is not installed.
    """
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
