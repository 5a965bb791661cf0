"""Every verb, setting, topic and measure is documented: the code is asked for the list."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from infra.app.layers import known_keys
from infra.app.reference import settings_reference
from infra.app.settings import Settings
from infra.cli import VERBS, cli
from infra.recipes.files import WINGS, recipe_path, recipes
from storage.evaluation.incomplete import beside
from storage.evaluation.measures import MEASURES
from streams.acls import RIGHTS
from streams.secrets import secret_paths
from streams.topics import DERIVED, TOPICS
from tests.pages import commands_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTEXT = click.Context(cli)
WRITTEN = sorted({*ROOT.glob("*.md"), *ROOT.glob("infra/**/*.md")})
PLACEHOLDER = re.compile("NAME|NNNN")
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


@pytest.mark.parametrize("measure", [*MEASURES, *beside("nDCG@10")])
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


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    packages = "streams|learner|search_env|storage|infra|tests"
    files = [name for name in re.findall(rf"`((?:{packages})/[\w./-]+)", text) if not PLACEHOLDER.search(name)]
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_function_that_a_walk_names_is_in_its_file() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`([a-z_/]+\.py):([\w.]+)`", page)
    assert len(named) > 20
    for file, name in named:
        if "/" in file:  # Others stand beside the file that was named before them.
            code = (ROOT / file).read_text()
            for part in name.split("."):
                assert re.search(rf"(def|class) {part}\b", code), f"{file} has no {name}"


def test_every_room_is_in_the_architecture() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for package in ("search_env", "storage", "services", "infra", "streams"):
        for room in (path.parent for path in (ROOT / package).glob("*/__init__.py")):
            assert f"`{room.relative_to(ROOT)}/`" in page or f"`{room.name}/`" in page, room


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in WINGS.glob("*/recipe.toml")))
def test_every_recipe_has_a_page_of_its_own_with_its_paper_and_baselines(recipe: str) -> None:
    page = (WINGS / recipe / "README.md").read_text()
    assert len(page.splitlines()) <= 80
    assert "Where we differ" in page
    assert "need no policy" in page
    assert f"(infra/recipes/{recipe}/README.md)" in README


def test_the_readme_is_short_and_the_log_is_newest_first() -> None:
    assert len(README.splitlines()) <= 120
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 250
    dates = re.findall(r"^## (\d{4}-\d{2}-\d{2})$", (ROOT / "infra" / "LOG.md").read_text(), flags=re.MULTILINE)
    assert len(dates) > 1
    assert dates == sorted(set(dates), reverse=True)


def test_hooks_run_out_of_the_projects_own_environment_and_hosted_checks_run_the_two_commands() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "mypy", "codespell"}
    assert all(hook["language"] == "system" and ".venv/bin/" in hook["entry"] for hook in repository["hooks"])
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    commands = [step["run"] for step in job["steps"] if step.get("run", "").startswith("make ")]
    assert commands == [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]


def test_the_newest_release_is_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest.split(" – ")[0] in (f"## {version}", "## Unreleased")
