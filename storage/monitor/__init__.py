"""The monitor's arithmetic: windows over a run's log, stalls and alerts, without Kafka, clock or thread."""
