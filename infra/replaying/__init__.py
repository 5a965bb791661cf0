"""A recorded run once more: read, copied, scored anew, made again bit-equal."""
