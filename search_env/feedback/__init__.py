"""Feedback from live users: impressions and their actions, joined by event time into outcomes.

Read in this order: `impressions` (the events), `attribution` (the rules about times), `outcomes` (the results),
`joining` (the join), `snapshots` (its state as bytes), `changes` (the difference between provisional and final
outcomes). All of it is pure: no Kafka, clock, thread or file.
"""
