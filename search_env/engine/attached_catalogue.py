"""The catalogue of an attached index: a sample with its statistics, and the documents that searches find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.documents import DocumentReader


class AttachedCatalogue(Catalogue):
    """A sample of an attached index. What it lacks is read by id; its statistics hold for every document.

    So the features and words of a document do not depend on the documents that are read with it.
    """

    def __init__(self, documents: Sequence[Document], reader: DocumentReader) -> None:
        super().__init__(documents)
        self._reader = reader

    def holding(self, ids: Iterable[str]) -> Catalogue:
        """Return a catalogue of these documents; the sample itself, if it holds them all.

        Raises as `DocumentReader.read` does.
        """
        wanted = list(dict.fromkeys(ids))
        if all(name in self.row_of for name in wanted):
            return self
        read = self._reader.read([name for name in wanted if name not in self.row_of])
        found = [self.documents[self.row_of[name]] if name in self.row_of else read[name] for name in wanted]
        return Catalogue(found, like=self)
