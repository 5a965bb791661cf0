"""Which partner a recipe's summariser takes turns with."""

from __future__ import annotations

from infra.recipes.relsum.partner import RankerPartner
from infra.recipes.resume.partner import RetrieverPartner
from infra.runs.alternation import Partner
from streams.errors import SettingsError

PARTNERS: dict[str, type[Partner]] = {"resume": RetrieverPartner, "summary": RankerPartner}


def partner_of(task: str) -> Partner:
    """Return the partner of a task. Raises SettingsError, naming the tasks, if it takes no turns."""
    if task not in PARTNERS:
        raise SettingsError(f"turns: expected a recipe whose train.task is one of {', '.join(PARTNERS)}, got {task!r}")
    return PARTNERS[task]()
