"""One local vLLM: the command that serves a base model and loads LoRA adapters at run time.

vLLM has a separate environment (`make vllm`), because its pins conflict with ours. It is started as a module, because
the CPU package's `vllm` command fails on its own name.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from services.errors import ProvisionError
from services.settings import Port
from streams.descriptions import describe

ROLE = "vllm"
BASE_NAME = "base"
# Arguments that may cut the distribution (top-p, top-k, …), or report other log-probabilities than it has.
DISTRIBUTION = frozenset(
    {"--generation-config", "--override-generation-config", "--logprobs-mode", "--logits-processors"}
)
# The maximum adapter ranks that vLLM 0.32 accepts.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-vllm"
OURS = Path(__file__).with_name("vllm_environment")  # Our code that runs in vLLM's process.
INSTALL = "Run: make vllm (6 GB), or name a Python that has vLLM in vllm_server.python"
# vLLM has two or three processes, and only the first carries our tags. If kill -9 ends the first, the others remain,
# ignore SIGTERM, and have overwritten their command line and environment (seen with 0.32). A shell therefore leads
# their process group and kills the whole group when the first process ends, however it ends.
LEADER = """\
"$@" & child=$!
trap 'kill -TERM $child 2>/dev/null' TERM
while kill -0 $child 2>/dev/null; do wait $child; done
kill -KILL 0
"""


class VllmServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a local vLLM, used if `generation.backend` is `vllm` and `vllm.url` is empty; for two cores."""

    python: Annotated[str, describe("Path of a Python interpreter that has vLLM. Empty: the one of `make vllm`.")] = ""
    # fp32 agrees with the learner to 1e-5 nats. vLLM's `auto` halves an fp32 model's precision.
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        describe(
            "Type of weights and activations. float32 agrees best with the learner; bfloat16 is faster and less "
            "exact (see `learner.update.logprob_difference_max`)."
        ),
    ] = "float32"
    context_tokens: Annotated[
        int, msgspec.Meta(ge=64, le=1_048_576), describe("Largest number of tokens in prompt and answer together.")
    ] = 1024
    sequences_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe("Candidates that are decoded at once. More are faster and need more memory."),
    ] = 64
    cache_gigabytes: Annotated[
        int, msgspec.Meta(ge=1, le=1024), describe("Size of the key-value cache on a CPU, in GiB.")
    ] = 1
    # Two threads on two busy cores wait for each other: SmolLM2 wrote 20 tokens a second at load 7.
    threads: Annotated[
        int,
        msgspec.Meta(ge=1, le=512),
        describe("Threads of the model's computation on a CPU. More than there are idle cores slow it down."),
    ] = 1
    eager: Annotated[
        bool,
        describe(
            "True does not compile the model, which makes the start and the first answer 15 s faster. Use False "
            "for long runs on a GPU."
        ),
    ] = True
    port: Annotated[Port, describe("Port of the server. 0: a free port.")] = 0
    start_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=7200), describe("Time limit for the server's first answer.")
    ] = 400.0
    arguments: Annotated[
        tuple[str, ...], describe('Further arguments of vLLM, such as ["--tensor-parallel-size", "2"].')
    ] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if the arguments contain a key, which every user could read, or change the distribution."""
        names = [argument.partition("=")[0] for argument in self.arguments]
        if "--api-key" in names:
            raise ValueError("arguments: expected no --api-key; our server gets its own key from a variable")
        if changed := sorted(DISTRIBUTION & set(names)):
            raise ValueError(
                f"arguments: expected no {changed[0]}: the server would sample from another distribution than the one "
                "whose log-probabilities the learner needs, and the importance ratios would be wrong"
            )


class VllmModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model that a server serves: the base model's folder, the largest adapter rank, the number of adapters."""

    folder: str
    rank: int
    adapters_max: int


def vllm_python(settings: VllmServerSettings) -> Path:
    """Return the interpreter with vLLM; raises ProvisionError, with the remedy, if there is none."""
    python = Path(settings.python).expanduser() if settings.python else ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise ProvisionError(f"vLLM: expected a Python that has it at {python}, found none. {INSTALL}")
    # Look for the folder, because importing vLLM takes ten seconds.
    if not list(python.parent.parent.glob("lib/python3*/site-packages/vllm/__init__.py")):
        raise ProvisionError(f"vLLM: {python} does not have the package vllm. {INSTALL}")
    return python


def vllm_command(
    settings: VllmServerSettings, model: VllmModel, *, python: Path, port: int, tags: list[str], on_gpu: bool
) -> list[str]:
    """Return the command line of a server on this loopback port.

    tags: the marks of our process, passed to Python as -X options, which Python ignores.
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
        # The default, raw_logprobs, is the distribution before the temperature, not the one that was sampled from.
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",  # Ignore top-p and other values in the model's own file.
        "--max-loras": str(model.adapters_max),
        "--max-cpu-loras": str(model.adapters_max),
        "--max-lora-rank": str(lora_room(model.rank)),
    }
    flags = ["--enable-lora", *(["--enforce-eager"] if settings.eager else [])]
    if not on_gpu:
        arguments["--distributed-executor-backend"] = "uni"  # One process fewer: a start takes 68 s instead of 100.
        # Between two parts of a prompt, vLLM rewinds the request's seeded generator. A CPU generator cannot be rewound
        # (0.32: "CPU Generator does not use offset"), so any burst of prompts beyond the token budget kills the engine.
        flags.append("--no-enable-chunked-prefill")
        if python == ENVIRONMENT / "bin" / "python":  # It patches only the vLLM that the lock pins.
            arguments["--worker-extension-cls"] = "cpu_lora.Extension"
    command = [str(python), *marks, "-m", "vllm.entrypoints.openai.api_server"]
    command += [part for pair in arguments.items() for part in pair] + flags + list(settings.arguments)
    return ["/bin/sh", "-c", LEADER, "vllm", *command]


def vllm_environment(settings: VllmServerSettings, scratch: Path, *, api_key: str = "") -> dict[str, str]:
    """Return the server's environment: the caller's, without variables that change its numbers or use a network."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SEARCHLOOP_", "PYTHON", "VLLM_"))
    }
    return kept | {
        "PYTHONPATH": str(OURS),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # Lets the CPU engine run in one process; see `vllm_command`.
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
    """Return vLLM's smallest maximum rank that fits this rank; raises ProvisionError if none does."""
    for room in RANKS:
        if rank <= room:
            return room
    raise ProvisionError(f"policy.lora.rank: vLLM takes adapters up to rank {RANKS[-1]}, got {rank}")


def has_gpu(python: Path) -> bool:
    """Return whether this vLLM runs on a GPU: it is not the CPU package, and a GPU driver is installed."""
    if list(python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")):
        return False
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
