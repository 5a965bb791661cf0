"""The search environment: corpora, index, retrieval, relevance and the rewards that they give to generated text.

Reading order: `corpora` (files in) → `analysis` and `lexical` (terms) → `index` and `retrieval` (Elasticsearch) →
`context` (what the policy is shown) → `expansions` (what it wrote) → `relevance` and `rewards` → `environment`, which
puts them together. Nothing here knows Kafka; `environment` takes and returns the events of `streams.events`.
"""
