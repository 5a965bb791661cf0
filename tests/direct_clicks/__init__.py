"""What does a policy learn if people's clicks themselves are its rewards? Simulated people, real searches."""
