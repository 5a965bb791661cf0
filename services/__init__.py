"""The services that the loop runs on: local ones, or the user's own Kafka and Elasticsearch."""
