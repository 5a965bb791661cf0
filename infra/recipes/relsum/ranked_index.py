"""An index as ReLSum ranks it: products, lists and values, with the frozen cross-encoder that reads them."""

from __future__ import annotations

import copy
from functools import cached_property

import msgspec

from infra.recipes.relsum.index import RelsumIndex
from infra.recipes.relsum.ranker import train_ranker
from search_env.models.crossencoder import CURRENT_FILE, CrossEncoder, load_cross_encoder


class RankedIndex(RelsumIndex):
    """An index with its cross-encoder; either is made at first use if it is missing."""

    @cached_property
    def cross_encoder(self) -> CrossEncoder:
        """The frozen cross-encoder that the settings name.

        If they name none, it is the one that learned from the training lists, and it is trained if it is missing.
        """
        settings = self.settings.cross_encoder
        if not settings.version and not (self.folder.cross_encoders / CURRENT_FILE).is_file():
            train_ranker(self)
        return load_cross_encoder(self.folder.cross_encoders, settings)

    def read_with(self, version: str) -> RankedIndex:
        """Return the same index, read with another version of the cross-encoder."""
        other = copy.copy(self)
        vars(other).pop("cross_encoder", None)
        settings = msgspec.structs.replace(self.settings.cross_encoder, version=version)
        other.settings = msgspec.structs.replace(self.settings, cross_encoder=settings)
        return other
