"""Events and how they travel: the one package that every other room may import, and that imports none of them.

Shape of the flow: request → generation → reward → batch → update → policy version. A *group* is the G candidates
that a policy wrote for one request, and travels as one Kafka record.
"""
