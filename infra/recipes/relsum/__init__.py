"""ReLSum: judged lists, the cross-encoder that ranks them, labels, baselines, and the partner that takes turns."""
