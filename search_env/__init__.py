"""The search environment: it takes generated text and gives rewards.

Read the rooms in this order: `catalogue`, `queries`, `models`, `engine`, `summaries`, then a wing for each recipe
(`leser`, `relsum`, `resume`). `environments` defines an environment, and `workers` connects one to Kafka. A room
imports only rooms before it in this list. `traffic` (logs of other systems) and `feedback` (live users' clicks, joined
with what they saw) stand apart, and import no other room.
"""
