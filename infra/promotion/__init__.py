"""A version's way to people: the gate, the ramp, and the way back. Each decision is an event with its figures."""
