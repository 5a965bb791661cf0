"""What is installed is what is here: the wheel has every file of the packages, and the command works from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
PACKAGES = ("streams", "learner", "search_env", "storage", "services", "infra")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked, as an installer does it."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "built"), versions=["standard"])
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_packages_and_no_other(installed: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    here = {name for name in listed if name and (ROOT / name).is_file()}
    kinds = {Path(name).suffix for name in here}
    assert {".py", ".sql", ".toml", ".java", ".json"} <= kinds
    packed = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {name for name in packed if ".dist-info/" not in name} == here


def test_the_command_works_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "searchloop = infra.__main__:main" in entry_points.read_text()
    done = subprocess.run(
        [sys.executable, "-c", "import infra.__main__ as entry; print(entry.__file__); entry.main()", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert "Watch and prove:" in done.stdout
