"""The live monitor: windows over a run's log, what they warn of, and the view of them. Nothing depends on it."""
