"""The catalogue: documents, their attributes and words, shoppers' demand, and a generated catalogue."""
