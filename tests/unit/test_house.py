"""The shape of the house: which package may import which, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "streams": set(),
    "learner": {"streams"},
    "search_env": {"streams"},
    "storage": {"streams"},
    "services": {"streams", "search_env"},
    "infra": {"streams", "learner", "search_env", "storage", "services"},
}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
IN_VLLMS_PROCESS = sorted((ROOT / "services" / "vllm_environment").glob("*.py"))


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_those_below_it(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert imported_packages(path) <= MAY_IMPORT[package] | {package}


def test_what_runs_in_vllms_process_needs_nothing_of_ours_and_hides_no_module_there() -> None:
    assert IN_VLLMS_PROCESS
    for path in IN_VLLMS_PROCESS:
        assert not imported_packages(path)
        assert path.stem not in sys.stdlib_module_names | {"vllm", "torch"}


SPEAKS_TO_KAFKA = {
    "learner.following",
    "learner.intake",
    "learner.publishing",
    "learner.workers",
    "search_env.feedback.worker",
    "search_env.waiting",
    "search_env.workers",
    "storage.questions.copying",
    "storage.questions.sources",
    "storage.recorded",
    "storage.workers",
}


def imported_modules(path: Path) -> set[str]:
    """Return the names that a module imports when it is imported itself, names within modules included."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_what_is_pure_loads_without_kafka() -> None:
    """Above `streams`, workers, what reads topics, and what starts a broker need a client; nothing else does."""
    imports = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported_modules(path) for path in MODULES}
    with_kafka = {name for name, found in imports.items() if any(each.split(".")[0] == "kafka" for each in found)}
    while more := {name for name, found in imports.items() if found & with_kafka} - with_kafka:
        with_kafka |= more
    assert {name for name in with_kafka if not name.startswith(("streams.", "services.", "infra."))} == SPEAKS_TO_KAFKA


def test_events_load_without_torch_and_without_kafka() -> None:
    heavy = ("torch", "kafka", "duckdb", "faust")
    code = f"import sys, streams.events; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_storage_loads_without_torch() -> None:
    code = "import sys, storage.workers, storage.reports.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_the_monitor_itself_loads_faust() -> None:
    ours = [path for path in MODULES if path.name != "agents.py" and path not in IN_VLLMS_PROCESS]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ours]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nsys.exit('faust' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_faust_and_our_own_kafka_client_load_together() -> None:
    code = "import infra.monitoring.agents, aiokafka, kafka; aiokafka.AIOKafkaConsumer, kafka.KafkaConsumer"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_package_but_tests_is_in_the_wheel() -> None:
    assert (
        'packages = ["streams", "learner", "search_env", "storage", "services", "infra"]'
        in (ROOT / "pyproject.toml").read_text()
    )


def top_level_names(path: Path) -> set[str]:
    """Return every name that a module binds outside its functions and classes."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return found


def test_a_test_imports_only_names_that_exist() -> None:
    """A file that cannot be imported loses its tests, and the slow suite would say so only after the others."""
    missing = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in {*MAY_IMPORT, "tests"}:
                continue
            place = ROOT.joinpath(*(node.module or "").split("."))
            module = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
            names = top_level_names(module) if module.exists() else set()
            missing += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in names
                and not (place / f"{alias.name}.py").exists()
                and not (place / alias.name).is_dir()
            ]
    assert not missing
