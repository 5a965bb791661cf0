"""What does a policy learn from clicks alone, if the clicks themselves are its rewards? Simulated people, real searches."""
