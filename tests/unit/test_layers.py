"""Settings come in layers; what is wrong is named with its path and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from infra.app.layers import combine, environment_layer, known_keys, read_toml
from streams.errors import SettingsError


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    clip: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    names: tuple[str, ...] = ()


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inner: Inner = Inner()
    groups: int = 4


def test_later_layers_win_and_others_stay() -> None:
    settings = combine(Outer, [("a", {"groups": 8, "inner": {"clip": 0.3}}), ("b", {"inner": {"names": ["x"]}})])
    assert settings == Outer(groups=8, inner=Inner(clip=0.3, names=("x",)))


def test_an_unknown_key_is_an_error_that_names_its_path_and_the_known_ones() -> None:
    with pytest.raises(
        SettingsError, match=r"inner\.clipp: unknown setting, in my\.toml; expected one of: clip, names"
    ):
        combine(Outer, [("my.toml", {"inner": {"clipp": 0.3}})])


def test_a_value_out_of_range_names_path_value_and_source() -> None:
    with pytest.raises(SettingsError, match=r"inner\.clip: expected `float` < 1\.0, got 1\.2, in my\.toml"):
        combine(Outer, [("my.toml", {"inner": {"clip": 1.2}})])


def test_the_environment_reaches_every_level() -> None:
    layer = environment_layer(
        {
            "SEARCHLOOP_GROUPS": "16",
            "SEARCHLOOP_INNER__CLIP": "0.5",
            "SEARCHLOOP_INNER__NAMES": '["a","b"]',
            "SEARCHLOOP_HOME": "/x",
            "PATH": "/bin",
        }
    )
    assert combine(Outer, [("environment", layer)]) == Outer(groups=16, inner=Inner(clip=0.5, names=("a", "b")))


def test_every_setting_is_listed_with_its_default() -> None:
    assert known_keys(Outer) == {"inner.clip": 0.2, "inner.names": (), "groups": 4}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "found nothing"), (b"a = ", "expected TOML"), (b"\xff", "TOML")]
)
def test_a_file_that_is_no_toml_is_a_clear_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_toml(path)
