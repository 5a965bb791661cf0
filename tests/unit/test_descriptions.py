"""Every setting explains itself where it is declared, and the page and the errors pass this on."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
import pytest

from infra.app.layers import combine, known_keys
from infra.app.reference import described_settings, settings_reference
from infra.app.settings import Settings
from infra.cli import cli
from streams.descriptions import describe, description_of, is_common
from streams.errors import SettingsError

CHARACTERS_MAX = 200
COMMON = {
    "kafka.bootstrap",
    "kafka.security_protocol",
    "elasticsearch.url",
    "elasticsearch.api_key",
    "policy.base",
    "generation.backend",
    "generation.candidates",
    "batch.groups",
    "batch.staleness_max",
    "learner.update.learning_rate",
}


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    groups: Annotated[int, msgspec.Meta(ge=1), describe("Groups in a batch.")] = 4
    names: Annotated[tuple[str, ...], describe("Names of layers.")] = ()
    backend: Annotated[Literal["", "vllm"], describe("Writer of texts.")] = ""
    plain: int = 0


class Tree(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    batch: Table = Table()


def tables(kind: type[msgspec.Struct], path: str = "") -> dict[str, type[msgspec.Struct]]:
    found: dict[str, type[msgspec.Struct]] = {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            where = f"{path}.{field.name}".lstrip(".")
            found |= {where: field.type, **tables(field.type, where)}
    return found


def test_every_setting_has_a_description_of_short_whole_sentences() -> None:
    described = {each.path: description_of(each.hint) for each in described_settings(Settings())}
    assert list(described) == list(known_keys(Settings))
    for path, text in described.items():
        assert text.endswith("."), path
        assert text[0] == text[0].upper() and text == text.strip() and "\n" not in text and "  " not in text, path
        assert len(text) <= CHARACTERS_MAX, f"{path}: {len(text)} characters"


@pytest.mark.parametrize("path", tables(Settings))
def test_a_tables_docstring_explains_no_key_a_second_time(path: str) -> None:
    kind = tables(Settings)[path]
    keys = "|".join(kind.__struct_fields__)
    assert kind.__doc__
    assert re.findall(rf"\b(?:{keys}): ", kind.__doc__) == []


def test_ten_settings_are_marked_as_common_and_stand_first_on_the_page() -> None:
    assert {each.path for each in described_settings(Settings()) if is_common(each.hint)} == COMMON
    assert len(COMMON) == 10
    first = settings_reference().split("\n## ")[1]
    assert set(re.findall(r"^\| `([\w.]+)` \|", first, flags=re.MULTILINE)) == COMMON


def test_a_wrong_value_is_answered_with_the_settings_description() -> None:
    with pytest.raises(SettingsError, match=r"^batch\.groups: .*, got 0, in my\.toml\. Meaning: Groups in a batch\.$"):
        combine(Tree, [("my.toml", {"batch": {"groups": 0}})])
    with pytest.raises(SettingsError, match=r"^batch\.names\[0\]: .*in my\.toml\. Meaning: Names of layers\.$"):
        combine(Tree, [("my.toml", {"batch": {"names": [["x"]]}})])


def test_a_wrong_word_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        SettingsError, match=r"^batch\.backend: expected \"\" or vllm, got 'x', in my\.toml\. Meaning: "
    ):
        combine(Tree, [("my.toml", {"batch": {"backend": "x"}})])


@pytest.mark.parametrize("layer", [{"batch": {"plain": "x"}}, {"batch": 3}])
def test_without_a_description_an_error_ends_with_its_source(layer: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r", in my\.toml$"):
        combine(Tree, [("my.toml", layer)])


def test_the_help_says_how_to_see_all_settings() -> None:
    (option,) = [each for each in cli.params if each.name == "config"]
    assert "python -m infra.app.reference" in option.help  # type: ignore[attr-defined]
