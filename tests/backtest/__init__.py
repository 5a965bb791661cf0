"""The back-test of the alert rules: faults injected into runs that behave as real ones, and runs without a fault."""
