"""ReLSum (arXiv:2508.08404): the reward of a summary by a frozen cross-encoder, its environment and its lessons."""
