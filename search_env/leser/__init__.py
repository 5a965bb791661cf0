"""LESER (arXiv:2509.05570): query expansions, their contexts and lessons, the reward, and the baselines."""
