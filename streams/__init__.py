"""Events and their transport: every other package may import this one, and it imports none of them.

The flow is: request → generation → reward → batch → update → policy version. A *group* is the G candidates that a
policy wrote for one request. It travels as one Kafka record.
"""
