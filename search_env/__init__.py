"""The search environment: generated text in, rewards out.

Read the rooms in this order: `catalogue`, `queries`, `models`, `engine`, `summaries`, then a wing for each recipe
(`leser`, `relsum`, `resume`). `environments` says what an environment is, and `workers` puts one onto Kafka. A room
imports only rooms that stand before it in this list.
"""
