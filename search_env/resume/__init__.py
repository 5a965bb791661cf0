"""ReSuMe (WWW '26, doi:10.1145/3774904.3792959): the reward of a summary by a bi-encoder, and its environment."""
