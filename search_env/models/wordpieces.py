"""MiniLM's WordPiece tokens: the unit in which summaries are budgeted, because the models that read them count so."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from search_env.models.embeddings import model_directory


@lru_cache(maxsize=200_000)
def wordpiece_count(text: str) -> int:
    """Return the tokens of a text, without those that a model puts around it.

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
