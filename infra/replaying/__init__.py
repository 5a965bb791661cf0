"""Replays of a recorded run: read, copied, rescored, or reproduced bit for bit."""
