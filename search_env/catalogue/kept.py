"""A catalogue whose documents and matrices lie in files, so that no process holds it whole.

It gives the same numbers as `Catalogue` does, to the bit. Only the vocabulary, the values and the statistics of terms
are in memory; they grow more slowly than the documents. Making it reads the documents several times and needs no
more memory than one piece of rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import sparse

from search_env.catalogue.corpora import Document
from search_env.catalogue.kept_rows import (
    MANIFEST,
    ArrayReader,
    ArrayWriter,
    KeptArray,
    KeptError,
    KeptRows,
    read_ids,
    write_ids,
)
from search_env.catalogue.lexical import (
    Floats,
    TermMatrix,
    Vocabulary,
    idf_of,
    length_statistics,
    saturation_of,
    weights_of,
)
from search_env.catalogue.term_matrices import Catalogue

FORMAT = 1  # Grows when a file means something else, or when a number in it is computed differently.
FIELDS = ("contents", "title", "attributes")
PIECE_ENTRIES = 1 << 20  # Entries of a matrix that are in memory at a time while it is made: some 30 MB.
ENTRIES_MAX = 2**31 - 1  # scipy's indices have 32 bits.


class KeptManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a kept catalogue. sha256: of the corpus as JSON lines. widths: columns of each matrix."""

    format: int
    sha256: str
    documents: int
    widths: dict[str, int]
    arrays: dict[str, KeptArray]


def keep_catalogue(documents: Iterable[Document], folder: Path, *, sha256: str) -> None:
    """Write a catalogue into an empty folder. sha256: of its corpus, by which a reader knows it.

    Raises KeptError if a matrix would have more entries than a file can hold, and what `documents` raises.
    """
    writer = ArrayWriter(folder)
    rows = _keep_documents(documents, writer)
    write_ids(writer, (document.id for document in rows))
    made = _Making(rows, writer)
    made.settle()
    words = {"terms": made.vocabulary.terms, "forms": made.surface_forms, "phrases": made.value_phrases}
    for name, texts in words.items():
        writer.rows(name, map(msgspec.json.Encoder().encode, texts))
    writer.rows("value_terms", map(msgspec.json.Encoder().encode, made.value_terms))
    writer.finish(KeptManifest(FORMAT, sha256, len(rows), made.widths, writer.arrays))


def keep_documents(documents: Iterable[Document], folder: Path) -> Sequence[Document]:
    """Write documents into a folder, and return them as a sequence that decodes each when it is asked for."""
    return _keep_documents(documents, ArrayWriter(folder))


def read_manifest(folder: Path) -> KeptManifest | None:
    """Return the manifest of a kept catalogue; None if there is none that this code reads."""
    try:
        found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=KeptManifest)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.format == FORMAT else None


class KeptCatalogue(Catalogue):
    """A catalogue in the files that `keep_catalogue` wrote."""

    def __init__(self, folder: Path) -> None:
        """Raise KeptError if a file is missing or damaged."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise KeptError(f"{folder}: expected a kept catalogue of format {FORMAT}, found none")
        self._reader = ArrayReader(folder, manifest.arrays)
        self._widths = manifest.widths
        super().__init__(_documents(self._reader))
        self.vocabulary = Vocabulary()
        for term in self._texts("terms"):
            self.vocabulary.number(term)

    def _names(self) -> tuple[Sequence[str], Mapping[str, int]]:
        return read_ids(self._reader)

    def _field(self, name: str, rows: Iterable[list[int]]) -> TermMatrix:
        return KeptMatrix(name, self._reader, self.vocabulary, (len(self), self._widths[name]))

    @cached_property
    def surface_forms(self) -> list[str]:
        """[W] the most frequent word of each term, as in `Catalogue`."""
        return self._texts("forms")

    @cached_property
    def _values(self) -> tuple[list[str], sparse.csr_matrix]:
        return self._texts("phrases"), _matrix("values", self._reader, (len(self), self._widths["values"]))

    @cached_property
    def value_documents(self) -> sparse.csc_matrix:
        """[D, U] the documents that have a value, by columns."""
        indices = self._reader.read("values.column.indices")
        shape = (len(self), self._widths["values"])
        indptr = self._reader.read("values.column.indptr")
        return sparse.csc_matrix((_ones(len(indices)), indices, indptr), shape=shape)

    @cached_property
    def value_terms(self) -> list[tuple[int, ...]]:
        """[U] the distinct term numbers of each phrase, ascending."""
        kept = KeptRows(*self._rows("value_terms"), msgspec.json.Decoder(tuple[int, ...]))
        return list(kept)

    def settle(self) -> None:
        """Do nothing: the vocabulary is whole."""

    def _after_fields(self) -> None:
        """Do nothing: the vocabulary is whole."""

    def _rows(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return self._reader.read(name), self._reader.read(f"{name}.at")

    def _texts(self, name: str) -> list[str]:
        return list(KeptRows(*self._rows(name), msgspec.json.Decoder(str)))


class KeptMatrix(TermMatrix):
    """A term matrix in files."""

    def __init__(
        self, name: str, source: ArrayReader | ArrayWriter, vocabulary: Vocabulary, shape: tuple[int, int]
    ) -> None:
        self.counts = _matrix(name, source, shape)
        self.vocabulary = vocabulary
        self.lengths = source.read(f"{name}.lengths")
        self.frequencies = np.asarray(source.read(f"{name}.frequencies"))
        self.totals = np.asarray(source.read(f"{name}.totals"))
        self.idf = np.asarray(source.read(f"{name}.idf"))
        self.nonempty, self.length_mean = length_statistics(self.lengths)
        columns = (source.read(f"{name}.column.{part}") for part in ("data", "indices", "indptr"))
        self.bm25 = sparse.csc_matrix(tuple(columns), shape=shape)
        self.bm25.has_sorted_indices = True
        self.__dict__["row_weights"] = source.read(f"{name}.weights")
        self.__dict__["log_lengths"] = source.read(f"{name}.log_lengths")


class _Making(Catalogue):
    """A catalogue that writes each of its matrices into files as soon as it is made, and goes on with these."""

    def __init__(self, documents: KeptRows[Document], writer: ArrayWriter) -> None:
        self._writer = writer
        self.widths: dict[str, int] = {}
        super().__init__(documents)

    def _names(self) -> tuple[Sequence[str], Mapping[str, int]]:
        return [], {}

    def _field(self, name: str, rows: Iterable[list[int]]) -> TermMatrix:
        writer = self._writer
        write_rows(writer, name, rows, summed=True)
        width = self.widths[name] = len(self.vocabulary.terms)
        shape = (len(self), width)
        lengths = np.zeros(len(self), dtype=np.float32)
        frequencies, totals = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.float64)
        counts = _matrix(name, writer, shape)
        for first, last, indices, data in _pieces(counts):
            piece = sparse.csr_matrix((data, indices, _within(counts, first, last)), shape=(last - first, width))
            lengths[first:last] = np.asarray(piece.sum(axis=1), dtype=np.float32).ravel()
            frequencies += np.bincount(indices, minlength=width)
            totals += np.bincount(indices, weights=data, minlength=width)
        nonempty, mean = length_statistics(lengths)
        idf = idf_of(frequencies.astype(np.int32), nonempty)
        saturation = saturation_of(lengths, mean)

        def row_weights() -> Iterator[Floats]:
            for first, last, indices, data in _pieces(counts):
                of_entry = np.repeat(saturation[first:last], np.diff(counts.indptr[first : last + 1]))
                yield weights_of(data, of_entry) * idf[indices]

        writer.append(f"{name}.weights", row_weights(), "<f4")
        whole = {"lengths": lengths, "log_lengths": np.log1p(lengths), "idf": idf, "totals": totals}
        for each, values in {**whole, "frequencies": frequencies.astype(np.int32)}.items():
            writer.whole(f"{name}.{each}", values)
        write_columns(writer, name, counts, frequencies, writer.read(f"{name}.weights"))
        return KeptMatrix(name, writer, self.vocabulary, shape)

    @cached_property
    def _values(self) -> tuple[list[str], sparse.csr_matrix]:
        phrases: list[str] = []
        write_rows(self._writer, "values", self._value_rows(phrases), summed=False)
        width = self.widths["values"] = max(len(phrases), 1)
        matrix = _matrix("values", self._writer, (len(self), width))
        held = np.zeros(width, dtype=np.int64)
        for _, _, indices, _ in _pieces(matrix):
            held += np.bincount(indices, minlength=width)
        write_columns(self._writer, "values", matrix, held, None)
        return phrases, matrix


def write_rows(writer: ArrayWriter, name: str, rows: Iterable[list[int]], *, summed: bool) -> None:
    """Write a sparse matrix by rows, from each row's column numbers.

    summed: a column that comes twice counts twice, and columns are sorted within a row; otherwise the entries stay as
    they are, and each is 1.
    """
    indptr = array("q", [0])
    with (writer.folder / f"{name}.data").open("wb") as data_file:

        def pieces() -> Iterator[npt.NDArray[np.int32]]:
            for indices, lengths in _cut(rows):
                if summed:
                    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                    width = int(indices.max()) + 1 if len(indices) else 1
                    shape = (len(lengths), width)
                    piece = sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, ends), shape=shape)
                    piece.sum_duplicates()
                    data_file.write(np.asarray(piece.data, dtype="<f4").tobytes())
                    indices, lengths = piece.indices, np.diff(piece.indptr)
                begins = indptr[-1]
                indptr.extend((begins + np.cumsum(lengths)).tolist())
                if indptr[-1] > ENTRIES_MAX:
                    raise KeptError(
                        f"{writer.folder / name}: expected at most {ENTRIES_MAX:,} words in all documents together, "
                        f"got more by document {len(indptr) - 1:,}. Index the catalogue in parts"
                    )
                yield indices

        writer.append(f"{name}.indices", pieces(), "<i4")
    writer.whole(f"{name}.indptr", np.asarray(indptr, dtype=np.int32))
    if summed:
        writer.arrays[f"{name}.data"] = KeptArray("<f4", indptr[-1], "")
        writer.filled(f"{name}.data", np.zeros(0))
    else:
        (writer.folder / f"{name}.data").unlink()


def write_columns(
    writer: ArrayWriter,
    name: str,
    matrix: sparse.csr_matrix,
    held: npt.NDArray[np.int64],
    weights: Floats | None,
) -> None:
    """Write a sparse matrix by columns. held: the entries of each column. weights: of each entry, in row order."""
    indptr = np.concatenate([[0], np.cumsum(held)]).astype(np.int32)
    writer.whole(f"{name}.column.indptr", indptr)
    count = int(indptr[-1])
    indices = writer.room(f"{name}.column.indices", count, "<i4")
    data = writer.room(f"{name}.column.data", count, "<f4") if weights is not None else None
    following = indptr[:-1].astype(np.int64)  # The next free place of each column.
    for first, last, columns, _ in _pieces(matrix):
        start, end = int(matrix.indptr[first]), int(matrix.indptr[last])
        order = np.argsort(columns, kind="stable")  # By column, and within it by row, as the rows come.
        present, counts = np.unique(columns, return_counts=True)
        within = np.arange(len(columns)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(following[present], counts) + within
        rows = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(matrix.indptr[first : last + 1]))
        indices[places] = rows[order]
        if data is not None and weights is not None:
            data[places] = weights[start:end][order]
        following[present] += counts
    writer.filled(f"{name}.column.indices", indices)
    if data is not None:
        writer.filled(f"{name}.column.data", data)


def _cut(rows: Iterable[list[int]]) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Yield rows in pieces: all column numbers, and the length of each row."""
    indices, lengths = array("i"), array("q")
    for row in rows:
        indices.extend(row)
        lengths.append(len(row))
        if len(indices) + len(lengths) >= PIECE_ENTRIES:
            yield np.array(indices, dtype=np.int32), np.array(lengths, dtype=np.int64)
            indices, lengths = array("i"), array("q")
    if lengths:
        yield np.array(indices, dtype=np.int32), np.array(lengths, dtype=np.int64)


def _pieces(matrix: sparse.csr_matrix) -> Iterator[tuple[int, int, npt.NDArray[np.int32], Floats]]:
    """Yield a matrix in pieces of rows: first row, the row after the last, and the columns and values between."""
    first, rows = 0, matrix.shape[0]
    while first < rows:
        start = int(matrix.indptr[first])
        last = int(np.searchsorted(matrix.indptr, start + PIECE_ENTRIES, side="left"))
        last = min(max(last, first + 1), rows, first + PIECE_ENTRIES)
        end = int(matrix.indptr[last])
        yield first, last, np.asarray(matrix.indices[start:end]), np.asarray(matrix.data[start:end])
        first = last


def _within(matrix: sparse.csr_matrix, first: int, last: int) -> npt.NDArray[np.int32]:
    """Return where each of some rows begins among their entries."""
    return np.asarray(matrix.indptr[first : last + 1] - matrix.indptr[first])


def _matrix(name: str, source: ArrayReader | ArrayWriter, shape: tuple[int, int]) -> sparse.csr_matrix:
    indices = source.read(f"{name}.indices")
    data = _ones(len(indices)) if name == "values" else source.read(f"{name}.data")
    matrix = sparse.csr_matrix((data, indices, source.read(f"{name}.indptr")), shape=shape)
    if name != "values":
        matrix.has_sorted_indices = True
        matrix.has_canonical_format = True
    return matrix


def _ones(count: int) -> Any:
    """Return `count` ones that take no memory."""
    return np.broadcast_to(np.float32(1.0), (count,))


def _keep_documents(documents: Iterable[Document], writer: ArrayWriter) -> KeptRows[Document]:
    writer.rows("documents", map(msgspec.json.Encoder().encode, documents))
    return _documents(writer)


def _documents(source: ArrayReader | ArrayWriter) -> KeptRows[Document]:
    return KeptRows(source.read("documents"), source.read("documents.at"), msgspec.json.Decoder(Document))
