"""The services that the loop runs on: a Kafka and an Elasticsearch of our own, or a user's."""
