"""Requests about products, for recipes that write a text for each product of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infra.app.home import IndexFolder
from infra.recipes.recipe import Prepared
from learner.generation import Encode
from learner.product_prompts import ProductPromptSettings, tokenize_product_request
from search_env.engine.index import load_manifest
from streams.events import Product, Request


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
