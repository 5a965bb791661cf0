"""Plain titles for the measures of updates and the parts of rewards; the pages show them instead of raw names."""

from __future__ import annotations

METRICS = {
    "entropy": ("Entropy", "How undecided the policy is. A fall towards 0 ends exploration."),
    "ratio_mean": ("Probability ratio, mean", "New against old probability of the tokens; 1 means unchanged."),
    "ratio_max": ("Probability ratio, largest", "The largest change of one token in an update."),
    "clip_share": ("Clipped tokens", "Share of tokens whose ratio the objective has clipped."),
    "correction_mean": ("Staleness correction, mean", "Mean weight that corrects for an older policy."),
    "kl_behaviour": ("KL to the writing policy", "How far the learner is from the version that wrote the group."),
    "kl_reference": ("KL to the reference", "How far the policy is from its beginning."),
    "loss": ("Loss", "The objective that the step minimizes."),
    "tokens": ("Tokens per update", "Tokens that gave a gradient."),
    "completion_tokens_mean": ("Tokens per text", "Mean length of the texts."),
    "grad_norm": ("Gradient norm", "Before clipping. Jumps are a warning."),
    "learning_rate": ("Learning rate", "As the schedule gives it."),
    "reward_mean": ("Reward in the batch, mean", "Of the groups in each update."),
    "reward_std": ("Reward in the batch, spread", "Standard deviation within groups."),
    "validity": ("Valid texts", "Share in the right format."),
    "failed_share": ("Failed candidates", "Share that could not be scored."),
    "expansions_mean": ("Words per text", "Mean number of expansions."),
    "groups": ("Groups per update", "Groups that gave a gradient."),
    "flat_share": ("Groups without spread", "They give no gradient."),
    "rejected_share": ("Rejected groups", "Share that the learner refused."),
    "staleness_max": ("Staleness, largest", "In versions."),
    "logprob_difference": ("Log-probability agreement", "Difference between sampler and learner, by token."),
}
PARTS = {
    "relevance": ("Relevance", "Of the results, by the relevance model."),
    "tokens": ("Tokens", "Length of the text that is read."),
    "size": ("Size", "Of the expansion: a cheap way to a high reward."),
    "repeats": ("Repeated words", "Share of words that the text has said before."),
    "valid": ("Valid", "Share in the right format."),
    "error": ("Error", "The paper's reward: minus the distance to the label."),
    "probability": ("Probability", "Of the right order, by the cross-encoder."),
    "reciprocal_rank": ("Reciprocal rank", "1 / rank of the right product."),
    "list_likelihood": ("List likelihood", "Log-probability of the right product in its list."),
    "values": ("Values", "Attribute values in a summary."),
}
WORDS = {"update_metrics": METRICS, "reward_parts": PARTS}
"""Title and sentence by raw name, for each question that shows them."""
