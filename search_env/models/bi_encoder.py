"""The reading side of a retriever version: it turns texts into unit vectors and caches each by its content.

`TextEncoder` is the interface that scoring and indexing need. The built-in encoder reads the folder of a static
bi-encoder (`learner.retriever` writes it): token embeddings of the base, a weight for every token, a map for queries
and one for documents. Its vectors equal the learner's up to float rounding; a test compares them.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, safe_open
from scipy import sparse

from streams.errors import SearchloopError
from streams.whole_file import whole_file

Floats = npt.NDArray[np.float32]
BASE_TABLE = "embeddings.word_embeddings.weight"


class DenseError(SearchloopError, RuntimeError):
    """A retriever version or its vectors cannot be read."""


class TextEncoder(Protocol):
    """The interface of a retriever version, called `name`, that turns texts into vectors."""

    name: str

    def embed_queries(self, texts: Sequence[str]) -> Floats:
        """Return [n, E] unit vectors."""

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        """Return [n, E] unit vectors of documents, or of the texts that represent them."""

    def token_count(self, text: str) -> int:
        """Return the text's length in the retriever's tokens, without marker tokens."""


class StaticEncoder:
    """A static retriever version, read from its folder; the caller must have checked the folder's hashes."""

    def __init__(self, folder: Path, base: Path, *, tokens_max: int) -> None:
        """base: folder of the encoder that gives the token embeddings. Raises DenseError if a file is unreadable."""
        from tokenizers import Tokenizer

        self.name = folder.name
        try:
            learned = load_file(folder / "retriever.safetensors")
            with safe_open(base / "model.safetensors", framework="np") as file:
                table = file.get_tensor(BASE_TABLE).astype(np.float32)
            self._tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
            self._table: Floats = table * np.exp(learned["token_weights"])  # [V, E]
            self._maps: dict[bool, Floats] = {True: learned["query_map"], False: learned["document_map"]}
        except Exception as error:  # tokenizers raises bare Exception.
            raise DenseError(
                f"retriever {folder.name}: cannot be read ({error}). Make it again: searchloop alternate"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(tokens_max)

    def embed_queries(self, texts: Sequence[str]) -> Floats:
        """Return [n, E] unit vectors."""
        return self._encode(texts, queries=True)

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        """Return [n, E] unit vectors."""
        return self._encode(texts, queries=False)

    def token_count(self, text: str) -> int:
        """Return the number of the text's tokens, without marker tokens; at most the retriever's own limit."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode(self, texts: Sequence[str], *, queries: bool) -> Floats:
        if not texts:
            return np.zeros((0, self._table.shape[1]), dtype=np.float32)
        bags = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        starts = np.cumsum([0, *map(len, bags)])
        ids = np.fromiter((token for bag in bags for token in bag), dtype=np.int64, count=int(starts[-1]))
        ones = np.ones(len(ids), dtype=np.float32)
        counts = sparse.csr_matrix((ones, ids, starts), shape=(len(texts), len(self._table)))
        mapped = (counts @ self._table) @ self._maps[queries]
        return np.asarray(mapped / np.linalg.norm(mapped, axis=1, keepdims=True), dtype=np.float32)


class RememberedVectors:
    """An encoder's document vectors by content hash, cached in memory and, with a directory, in a file for later.

    Between two turns of the summarizer, most summaries stay the same, and within a group many candidates are equal.
    """

    def __init__(self, encoder: TextEncoder, *, kept: int = 100_000, directory: Path | None = None) -> None:
        """kept: vectors in memory; the least recently used goes first. directory: the folder of the file, if any."""
        self.encoder = encoder
        self._kept = kept
        self._vectors: OrderedDict[str, Floats] = OrderedDict()
        self._path = directory / f"vectors-{encoder.name}.npz" if directory else None
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def embed_documents(self, texts: Sequence[str]) -> Floats:
        """Return [n, E] unit vectors; only texts that were not seen before are encoded."""
        keys = [content_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        self._vectors.update(zip(missing, self.encoder.embed_documents(list(missing.values())), strict=True))
        for key in keys:
            self._vectors.move_to_end(key)
        found = np.stack([self._vectors[key] for key in keys]) if keys else self.encoder.embed_documents([])
        while len(self._vectors) > self._kept:
            self._vectors.popitem(last=False)
        return found

    def save(self) -> None:
        """Write the vectors to the file, completely or not at all; without a directory, do nothing."""
        if self._path is None or not self._vectors:
            return
        with whole_file(self._path) as aside, aside.open("wb") as stream:
            np.savez(stream, keys=np.array(list(self._vectors)), vectors=np.stack(list(self._vectors.values())))

    def _read(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as kept:
                self._vectors.update(zip(kept["keys"].tolist(), kept["vectors"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            self._vectors.clear()  # A damaged cache is computed again.


def content_key(text: str) -> str:
    """Return the hash that identifies a text's vector."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
