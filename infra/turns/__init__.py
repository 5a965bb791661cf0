"""A summariser and what reads its summaries, in turn: ReSuMe with a retriever, ReLSum with its cross-encoder."""
