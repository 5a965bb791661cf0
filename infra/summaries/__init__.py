"""Summaries of products (ReLSum): the world that they are judged in, written, compared, published."""
