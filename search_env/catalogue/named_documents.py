"""A catalogue's documents by id, each read where it lies: in memory, or in a mapped file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from search_env.catalogue.corpora import Document


class NamedDocuments(Mapping[str, Document]):
    """Documents by id, in the order of the catalogue."""

    def __init__(self, documents: Sequence[Document], row_of: Mapping[str, int] | None = None) -> None:
        """row_of: the row of each id, in the order of rows; None makes it."""
        self.rows = documents
        self._row_of = {each.id: row for row, each in enumerate(documents)} if row_of is None else row_of

    def __getitem__(self, name: str) -> Document:
        return self.rows[self._row_of[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._row_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __len__(self) -> int:
        return len(self.rows)


class DocumentTexts(Mapping[str, str]):
    """A text for each document by id, made when it is asked for."""

    def __init__(self, documents: NamedDocuments, text_of: Callable[[Document], str]) -> None:
        self._documents = documents
        self._text_of = text_of

    def __getitem__(self, name: str) -> str:
        return self._text_of(self._documents[name])

    def __contains__(self, name: object) -> bool:
        return name in self._documents

    def __iter__(self) -> Iterator[str]:
        return iter(self._documents)

    def __len__(self) -> int:
        return len(self._documents)
