"""`python -m tests.fuzz [COUNT] [NAME …]`: COUNT inputs for every decoder, a log of COUNT records; or those named."""

from __future__ import annotations

import sys
import time

from tests.fuzz import redelivery
from tests.fuzz.decoders import DECODERS
from tests.fuzz.dose import run

LOG = "redelivery"


def main() -> None:
    """Run what is asked for, and say what became of the inputs."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for name in sys.argv[2:] or [*DECODERS, LOG]:
        began = time.monotonic()
        fates = redelivery.run(count, seed=1) if name == LOG else run(name, count, seed=1)
        said = ", ".join(f"{number:,} {fate}" for fate, number in fates.most_common())
        print(f"{name}: {count:,} inputs in {time.monotonic() - began:.0f} s, no crash: {said}", flush=True)


if __name__ == "__main__":
    main()
