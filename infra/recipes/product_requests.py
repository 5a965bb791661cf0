"""Requests about products, for recipes that write a text for each product of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from infra.app.app import App
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun, Prepared
from learner.generation import Encode
from learner.product_prompts import encode_product_request
from search_env.engine.index import load_manifest
from streams.events import Product, Request


def product_encoder(settings: Settings) -> Encode:
    """Return the prompt: a function from a tokenizer and a product's request to token ids. It never shows a query."""
    return partial(encode_product_request, settings=settings.product_prompts)


def prepared_products(app: App, new: NewRun, products: Sequence[Product]) -> Prepared:
    """Return one request for each product, in order, without a query."""
    version = load_manifest(app.home.index(new.index)).name
    asked = [
        Request(request_id="", run=new.run, query_id=product.document_id, query="", index=version, product=product)
        for product in products
    ]
    return Prepared(run=new.run, index=version, asked=asked)
