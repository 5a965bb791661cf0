"""Recipes: the interface that the loop asks for, what recipes share, and a wing for each paper."""
