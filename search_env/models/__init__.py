"""Models that read text: embeddings, relevance models, cross-encoders and bi-encoders, and their training."""
