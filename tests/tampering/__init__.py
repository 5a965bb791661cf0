"""The mutation table: what somebody does to a finished run, the rule that must find it, and the modes that can.

`tests/services/test_tampering.py` does each of these to a copy; `infra/VERIFY.md` shows the table.
"""

from __future__ import annotations

from tests.tampering.files import FILE_TAMPERINGS
from tests.tampering.ledger import LEDGER_TAMPERINGS
from tests.tampering.log import LOG_TAMPERINGS

TAMPERINGS = (*LEDGER_TAMPERINGS, *LOG_TAMPERINGS, *FILE_TAMPERINGS)
