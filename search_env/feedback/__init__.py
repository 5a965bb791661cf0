"""Feedback from live users: impressions and their actions, joined by event time into outcomes.

The events are `Impression`, `UserAction` and `ImpressionOutcome` (`streams/events.py`). Read in this order:
`attribution` (the rules about times), `bots` (who is no person), `outcomes` (the events that are in no outcome, and
counts), `joining` (the join), `snapshots` (its state as bytes), `changes` (the difference between provisional and final
outcomes). All of it is pure: no Kafka, clock, thread or file.
"""
