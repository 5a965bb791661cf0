"""Recipes: the interface that the loop needs, the parts that recipes share, and a wing for each paper."""
