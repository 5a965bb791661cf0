"""Search by vectors (ReSuMe): retriever versions, what is embedded, and the turns of summariser and retriever."""
