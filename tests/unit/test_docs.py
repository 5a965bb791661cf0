"""Every verb, setting, topic and measure is documented: the code is asked for the list."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from infra.app.layers import known_keys
from infra.app.reference import settings_reference
from infra.app.settings import Settings
from infra.cli import VERBS, cli
from infra.recipes.files import WINGS, recipe_path, recipes
from storage.evaluation.measures import MEASURES
from streams.acls import RIGHTS
from streams.secrets import secret_paths
from streams.topics import DERIVED, TOPICS
from tests.pages import commands_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTEXT = click.Context(cli)
PAGES = ("README.md", "infra/MODELS.md", "infra/REPLAY.md", "infra/RECIPES.md", "infra/SECURITY.md", "infra/VERIFY.md")


def command_of(name: str) -> click.Command:
    command = cli.get_command(CONTEXT, name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example_and_stands_in_the_readme(name: str) -> None:
    help_text = command_of(name).get_help(click.Context(command_of(name), info_name=name))
    assert f"searchloop {name}" in help_text
    assert "Example" in help_text
    assert f"`{name}`" in README or f"searchloop {name}" in README


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands_in(page)])
def test_every_command_in_the_pages_is_understood(line: str) -> None:
    _, *rest = shlex.split(line, comments=True)
    context = cli.make_context("searchloop", rest)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    assert not context.args


def test_every_way_to_replay_has_its_example() -> None:
    page = "\n".join(commands_in("infra/REPLAY.md"))
    for name in ("reproduce", "counterfactual", "load", "copy", "import-ubi"):
        assert f"searchloop replay {name} " in page


def test_the_settings_reference_is_what_the_code_says() -> None:
    assert (ROOT / "infra" / "SETTINGS.md").read_text() == settings_reference()


def test_every_setting_is_in_the_reference() -> None:
    reference = settings_reference()
    for path in known_keys(Settings):
        table, _, key = path.rpartition(".")
        assert f"## [{table}]" in reference
        assert f"| `{key}` |" in reference


def test_every_secret_and_every_role_is_on_the_page_of_security() -> None:
    page = (ROOT / "infra" / "SECURITY.md").read_text()
    for path in secret_paths(Settings):
        assert f"| `{path}` | `{path}_file` |" in page
    for role, rights in RIGHTS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {role} |"))
        if role not in ("sink", "monitor"):  # They read everything.
            assert row.split(" | ")[1].split(", ") == list(rights.reads)
            assert row.split(" | ")[2].split(", ") == list(rights.writes)


@pytest.mark.parametrize("topic", [topic.kind for topic in (*TOPICS, *DERIVED)])
def test_every_topic_is_in_the_readme(topic: str) -> None:
    assert f".{topic}" in README


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_in_the_readme(measure: str) -> None:
    assert measure in README


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_can_be_read(recipe: str) -> None:
    from infra.app.layers import combine, read_toml

    assert combine(Settings, [(recipe, read_toml(recipe_path(recipe)))])


@pytest.mark.parametrize("model", sorted(path.stem for path in (WINGS / "models").glob("*.toml")))
def test_every_models_settings_go_over_a_recipe_and_can_be_served(model: str) -> None:
    from infra.app.layers import combine, read_toml
    from infra.runs.serving import check_backend

    path = WINGS / "models" / f"{model}.toml"
    settings = combine(Settings, [("leser", read_toml(recipe_path("leser"))), (model, read_toml(path))])
    assert settings.generation.backend == "vllm"
    check_backend(settings)


def test_the_readme_names_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert f"\n{target}:" in makefile
