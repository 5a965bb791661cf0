"""ReSuMe: texts that stand for documents, the bi-encoder that finds them, and the partner that takes turns."""
