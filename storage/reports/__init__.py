"""The report of a run: what it sums, what it keeps of the sums, and the one page made from them."""
