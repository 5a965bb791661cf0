"""What a cluster would do: a discrete-event simulation of the loop, calibrated by service times that were measured."""
