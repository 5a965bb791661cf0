"""Evidence that offline evaluation can be believed: each part measures one claim, and `infra/EVIDENCE.md` shows it.

    python -m tests.foretelling                     # every part; about half an hour on one core
    python -m tests.foretelling coverage canary     # these parts
    python -m tests.foretelling --page              # the page's tables from the kept results

The estimators, the interleaving, the choice of what to show and the ramp are the product's own. People, and the logs of
what they did, are simulated. A small dose of each part runs in `tests/unit/test_foretelling.py`.
"""
