"""Click models with published parameters, in the JSON files of the ULTRA toolbox.

A file gives the attraction of each relevance grade, and examination by rank. The trust-bias file gives only ε⁻ of the
first rank. The others follow Vardasbi et al., CIKM 2020: ε⁻_k = ε⁻_1 / k and ε⁺_k = .98 − (k + 1) / 100 for rank k.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from search_env.clicks.models import Cascade, ClickModel, PositionBased, TrustBias, UserBrowsing
from streams.errors import SearchloopError

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ClickModelError(SearchloopError, ValueError):
    """A file holds no click model that is known here."""


class PublishedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A published model. attraction: the probability that a result of each relevance grade would be clicked."""

    model: ClickModel
    attraction: tuple[float, ...]


EYE_TRACKED = PublishedModel(
    model=PositionBased(examination=(0.68, 0.61, 0.48, 0.34, 0.28, 0.2, 0.11, 0.1, 0.08, 0.06)),
    attraction=(0.1, 0.16, 0.28, 0.52, 1.0),
)
"""Examination by rank as an eye-tracking study measured it (Joachims et al., SIGIR 2005), and grades 0 to 4."""


class _File(msgspec.Struct):
    model_name: str
    click_prob: Annotated[tuple[Probability, ...], msgspec.Meta(min_length=1)]
    exam_prob: tuple[Probability | tuple[Probability, ...], ...]
    extra: dict[str, float] = {}


def read_click_model(path: Path) -> PublishedModel:
    """Read a model from its file. Raises ClickModelError if the file holds none."""
    try:
        content = path.read_bytes()
        outer = msgspec.json.decode(content)
        # A file of a randomized estimator holds its click model within.
        file = msgspec.convert(outer.get("click_model", outer) if isinstance(outer, dict) else outer, _File)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ClickModelError(f"{path}: expected a click model (JSON), got: {error}") from error
    return PublishedModel(model=_model(file, path), attraction=file.click_prob)


def _model(file: _File, path: Path) -> ClickModel:
    nested = [row for row in file.exam_prob if isinstance(row, tuple)]
    flat = [value for value in file.exam_prob if not isinstance(value, tuple)]
    ranks = range(1, len(flat) + 1)
    if file.model_name == "user_browsing_model":
        if flat:
            raise ClickModelError(f"{path}: expected a list of examinations for each rank, got one number")
        for rank, row in enumerate(nested):
            if len(row) != rank + 1:
                raise ClickModelError(f"{path}: expected {rank + 1} values at rank {rank + 1}, got {len(row)}")
        return UserBrowsing(examination=tuple(nested))
    if nested or not flat:
        raise ClickModelError(f"{path}: expected one examination a rank for the model {file.model_name!r}")
    if file.model_name == "position_biased_model":
        return PositionBased(examination=tuple(flat))
    if file.model_name == "cascade_model":
        return Cascade()
    if file.model_name == "trust_biased_model" and "epsilon_1_neg" in file.extra:
        first = file.extra["epsilon_1_neg"]
        return TrustBias(
            examination=tuple(flat),
            relevant=tuple(0.98 - (rank + 1) / 100 for rank in ranks),
            irrelevant=tuple(first / rank for rank in ranks),
        )
    raise ClickModelError(
        f"{path}: expected position_biased_model, user_browsing_model, cascade_model or trust_biased_model, got "
        f"{file.model_name!r}"
    )
