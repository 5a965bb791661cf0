"""Ctrl-C and SIGTERM end a process within seconds, whatever its main thread is in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each says "ready", and would go on for minutes.
WAITS = {
    "asleep": "time.sleep(600)",
    "in a library that swallows every exception": (
        "while True:\n"
        "    try: time.sleep(600)\n"
        "    except BaseException: pass\n"
    ),
    "in native code": "hashlib.pbkdf2_hmac('sha256', b'p', b's', 2_000_000_000)",
    "behind a flag that nobody looks at": (
        "with interrupts(Stop()):\n"
        "    while True: time.sleep(600)\n"
    ),
    "in a clean-up that takes long": (
        "try: time.sleep(600)\n"
        "finally: time.sleep(600)\n"
    ),
    "with work that was given up": (
        "threading.Thread(target=native, daemon=True, name='work').start(); working._busy.set(); time.sleep(600)"
    ),
}  # fmt: skip
PROGRAM = """
import hashlib, threading, time
from infra.app.interrupts import at_hard_end, end_on_signals, exit_status, interrupts, leave
from streams import working
from streams.delivery import Stop
def native(): hashlib.pbkdf2_hmac('sha256', b'p', b's', 2_000_000_000)
end_on_signals(limit_seconds=1.0)
try:
    with at_hard_end(lambda: "what remains is told"):
        print("ready", flush=True)
{body}
except KeyboardInterrupt:
    print("stopped", flush=True)
    leave(exit_status())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("wait", WAITS)
def test_a_process_ends_soon_after_the_signal_whatever_it_is_in(wait: str, number: signal.Signals) -> None:
    body = "".join(f"        {line}\n" for line in WAITS[wait].splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)  # Into the wait itself: there is nothing to see of it from outside.
    began = time.monotonic()
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert time.monotonic() - began < 5
    lines = (said + errors).strip().splitlines()
    hard = "stopped: it had not ended 1 s after the signal, and was cut off; what remains is told"
    assert lines in (["stopped"], [hard])
    assert (lines == [hard]) == (wait not in ("asleep", "with work that was given up"))


FORKS = """
import os, signal, time
from infra.app.interrupts import end_on_signals
end_on_signals(limit_seconds=0.2)
if (child := os.fork()) == 0:
    print("ready", flush=True)
    time.sleep(600)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(1)
print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_signal_to_a_forked_child_ends_the_child_alone() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"ready\n{-signal.SIGTERM}\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["infra", "infra.cli"])
def test_ctrl_c_while_the_command_imports_its_modules_is_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "click.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", module, "status"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, "stopped\n")


def test_an_interrupt_that_a_library_turned_into_another_error_is_one_line() -> None:
    code = (
        "import os, signal, infra.cli as cli\n"
        "def fail(*a, **k):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise ImportError('native part failed to import')\n"
        "cli.cli = fail\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
