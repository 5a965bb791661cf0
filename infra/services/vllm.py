"""One local vLLM: the command that serves a base model and takes LoRA adapters while it runs.

vLLM lives in an environment of its own (`make vllm`; its pins and ours exclude each other) and is started as a module:
the CPU package's `vllm` command fails on its own name.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from infra.services.errors import ProvisionError
from infra.services.settings import Port

ROLE = "vllm"
BASE_NAME = "base"
# The adapter ranks for which vLLM 0.32 has room.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-vllm"
OURS = Path(__file__).resolve().parents[1] / "vllm"  # What of ours runs in vLLM's process.
INSTALL = "Run: make vllm (6 GB), or name a Python that has vLLM in vllm_server.python"
# vLLM is three processes or two, and only the first wears our tags; killed by -9, it leaves the others behind, who
# ignore SIGTERM and have overwritten their command line and environment (seen with 0.32). So a shell leads their
# process group and kills all of it when the first ends, however it ends.
LEADER = """\
"$@" & child=$!
trap 'kill -TERM $child 2>/dev/null' TERM
while kill -0 $child 2>/dev/null; do wait $child; done
kill -KILL 0
"""


class VllmServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a vLLM of our own runs, if `generation.backend` is `vllm` and `vllm.url` is empty; made for two cores.

    python: an interpreter that has vLLM; empty: that of `make vllm`.
    dtype: of weights and activations. fp32 agrees with the learner to 1e-5 nats; bf16 is faster and coarser, see
    `learner.update.logprob_difference_max`. vLLM's `auto` halves an fp32 model's precision.
    context_tokens: prompt and answer together, at most.
    sequences_max: candidates decoded at once. cache_gigabytes: for keys and values, on a CPU.
    threads: for the model's computation, on a CPU. Two of them on two cores that others use wait for each other: 20
    tokens a second with SmolLM2 at load 7.
    eager: do not compile the model: a start is 15 s shorter, and so is the first answer; off for long runs on a GPU.
    port: 0 takes a free one. start_seconds: how long it may take until it answers.
    arguments: more of vLLM's own, such as ["--tensor-parallel-size", "2"].
    """

    python: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    context_tokens: Annotated[int, msgspec.Meta(ge=64, le=1_048_576)] = 1024
    sequences_max: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    cache_gigabytes: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    threads: Annotated[int, msgspec.Meta(ge=1, le=512)] = 1
    eager: bool = True
    port: Port = 0
    start_seconds: Annotated[float, msgspec.Meta(gt=0, le=7200)] = 400.0
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a key among the arguments: a command line is everybody's to read."""
        if any(argument.startswith("--api-key") for argument in self.arguments):
            raise ValueError("arguments: expected no --api-key; our server gets a key of its own, by a variable")


class VllmModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is to serve: the base model's folder, the largest adapter rank, and how many adapters at once."""

    folder: str
    rank: int
    adapters_max: int


def vllm_python(settings: VllmServerSettings) -> Path:
    """Return the interpreter that has vLLM; raises ProvisionError saying how to get one."""
    python = Path(settings.python).expanduser() if settings.python else ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise ProvisionError(f"vLLM: expected a Python that has it at {python}, found none. {INSTALL}")
    # Found by its folder: importing vLLM takes ten seconds.
    if not list(python.parent.parent.glob("lib/python3*/site-packages/vllm/__init__.py")):
        raise ProvisionError(f"vLLM: {python} does not have the package vllm. {INSTALL}")
    return python


def vllm_command(
    settings: VllmServerSettings, model: VllmModel, *, python: Path, port: int, tags: list[str], on_gpu: bool
) -> list[str]:
    """Return the command line of a server on this loopback port.

    tags: what marks the process as ours; they are handed to Python as -X options, which it ignores.
    """
    marks = [part for tag in tags for part in ("-X", tag)]
    arguments = {
        "--model": model.folder,
        "--served-model-name": BASE_NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": settings.dtype,
        "--max-model-len": str(settings.context_tokens),
        "--max-num-seqs": str(settings.sequences_max),
        # The default, raw_logprobs, is the distribution before the temperature: not what was sampled from.
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",  # Not top-p and the like from the model's own file.
        "--max-loras": str(model.adapters_max),
        "--max-cpu-loras": str(model.adapters_max),
        "--max-lora-rank": str(lora_room(model.rank)),
    }
    flags = ["--enable-lora", *(["--enforce-eager"] if settings.eager else [])]
    if not on_gpu:
        arguments["--distributed-executor-backend"] = "uni"  # One process less: a start takes 68 s instead of 100.
        # Between two parts of a prompt the request's seeded generator is rewound, which a CPU's cannot be (0.32: "CPU
        # Generator does not use offset"): the engine dies of any burst of prompts beyond its token budget.
        flags.append("--no-enable-chunked-prefill")
        if python == ENVIRONMENT / "bin" / "python":  # It reaches into the vLLM that the lock pins, and into no other.
            arguments["--worker-extension-cls"] = "cpu_lora.Extension"
    command = [str(python), *marks, "-m", "vllm.entrypoints.openai.api_server"]
    command += [part for pair in arguments.items() for part in pair] + flags + list(settings.arguments)
    return ["/bin/sh", "-c", LEADER, "vllm", *command]


def vllm_environment(settings: VllmServerSettings, scratch: Path, *, api_key: str = "") -> dict[str, str]:
    """Return the server's whole environment: the caller's, without what would change its numbers or ask a network."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SEARCHLOOP_", "PYTHON", "VLLM_"))
    }
    return kept | {
        "PYTHONPATH": str(OURS),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # Lets the CPU's engine be one process; see `vllm_command`.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cache_gigabytes),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CACHE_ROOT": str(scratch / "cache"),
        "OMP_NUM_THREADS": str(settings.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({"VLLM_API_KEY": api_key} if api_key else {}),
    }


def lora_room(rank: int) -> int:
    """Return the smallest adapter room of vLLM's that holds this rank; raises ProvisionError above the largest."""
    for room in RANKS:
        if rank <= room:
            return room
    raise ProvisionError(f"policy.lora.rank: vLLM takes adapters up to rank {RANKS[-1]}, got {rank}")


def has_gpu(python: Path) -> bool:
    """Return whether this interpreter's vLLM would run on a GPU: it is not the CPU's package, and a driver is there."""
    if list(python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")):
        return False
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
