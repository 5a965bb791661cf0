"""The learner: prompts, policies, sampling, and the updates that turn rewards into new policy versions.

These shape letters mean the same in every module of this package:

B  groups of one batch (one group = one request)
G  completions of one group (may differ between groups)
N  completions of one batch: B·G where every group has G
T  tokens of one packed row
P  prompt tokens, C completion tokens
M  predicted tokens of one batch: all completion tokens, without padding
V  vocabulary, D hidden size
"""
