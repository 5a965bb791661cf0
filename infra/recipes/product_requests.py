"""Requests about products, for recipes that write a text for each product of a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import overload

from infra.app.home import IndexFolder
from infra.recipes.recipe import Prepared
from learner.generation import Encode
from learner.product_prompts import ProductPromptSettings, tokenize_product_request
from search_env.engine.index import load_manifest
from streams.events import Product, Request


class ProductRequests(Sequence[Request]):
    """A request about each of some products, made when it is asked for."""

    def __init__(self, documents: Sequence[str], request_of: Callable[[str], Request]) -> None:
        self._documents = documents
        self._request_of = request_of

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> list[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | list[Request]:
        if isinstance(place, slice):
            return [self._request_of(name) for name in self._documents[place]]
        return self._request_of(self._documents[place])


def product_encoder(settings: ProductPromptSettings) -> Encode:
    """Return the prompt: a function from a tokenizer and a product's request to token ids. It never shows a query."""
    return partial(tokenize_product_request, settings=settings)


def prepared_products(index: IndexFolder, run: str, products: Sequence[Product]) -> Prepared:
    """Return one request for each product, in order, without a query."""
    version = load_manifest(index).name
    asked = [
        Request(request_id="", run=run, query_id=product.document_id, query="", index=version, product=product)
        for product in products
    ]
    return Prepared(run=run, index=version, asked=asked)
