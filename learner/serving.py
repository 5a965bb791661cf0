"""Candidates from vLLM servers: the sampler that uses HTTP, and a policy version that lives on these servers.

A server returns the token ids and the log-probability with which each token was drawn, at the sampling temperature.
Two things differ from the sampler in this process. vLLM does not know the no-repeat rule, so the rule must be off. The
same seed gives the same tokens only while the server batches alike, because rounding depends on the batch's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from learner.adapters import FOLDER, Adapters
from learner.policy import TOKENIZER, read_adapter, read_stop_ids, read_tokenizer
from learner.replicas import Replicas
from learner.sampling import SamplingError, completion_text
from learner.versions import check_version
from learner.vllm import VllmError, VllmSettings, addresses
from streams.events import Completion, PolicyRef, Sampling
from streams.whole_file import file_sha256

SEED_MAX = 2**62  # vLLM adds the candidate's number to the seed and expects the sum below 2**63.


class VllmSampler:
    """Samples from the adapter in use, with one request per group and several requests at once at each server."""

    def __init__(
        self,
        replicas: Replicas,
        adapters: Adapters,
        reference: PolicyRef,
        *,
        tokenizer: Any,
        stop_ids: Sequence[int],
        requests_in_flight: int,
    ) -> None:
        self.policy = reference
        self._replicas = replicas
        self._adapters = adapters
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids)
        self._requests_in_flight = requests_in_flight * len(replicas.all)

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Return the completions, [B][G]. Temperature 0 decodes greedily, and every log-probability is then 0.

        Raises SamplingError if counts disagree, a prompt is empty or the no-repeat rule is on; VllmError if the server
        refuses a request (for example a prompt that is too long) or its answer is incomplete; TransientError if no
        server answers. A group whose server dies is asked of another one with the same seed; only one answer counts.
        """
        if len(prompts) != len(seeds):
            raise SamplingError(f"sampling: expected one seed for each of {len(prompts)} prompts, got {len(seeds)}")
        if sampling.no_repeat:
            raise SamplingError(
                "sampling: expected generation.no_repeat = false, got true: vLLM does not know that rule, and the "
                "learner would mask tokens that vLLM did not. Set it to false, or generation.backend to 'transformers'"
            )
        if any(not prompt for prompt in prompts):
            raise SamplingError("sampling: expected prompts of at least 1 token, got an empty one")
        if not prompts:
            return []
        with (
            self._replicas.at_work(),
            ThreadPoolExecutor(max_workers=min(self._requests_in_flight, len(prompts))) as pool,
        ):
            groups = [
                pool.submit(self._sample_group, prompt, sampling, seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                return [group.result() for group in groups]
            except BaseException:
                for group in groups:
                    group.cancel()
                raise

    def _sample_group(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> list[Completion]:
        # Greedy candidates are identical: ask for one and repeat it.
        drawn = sampling.candidates if sampling.temperature > 0 else 1
        body = request_body(self._adapters.current, prompt, sampling, seed=seed, drawn=drawn, stop_ids=self._stop_ids)
        answer = self._replicas.ask(body)
        drawn_tokens = read_choices(answer, prompt, drawn=drawn)
        for ids, _ in drawn_tokens:
            # vLLM 0.32 accepts a prompt that leaves too little room and silently generates fewer tokens.
            if ids[-1] not in self._stop_ids and len(ids) != sampling.tokens_max:
                raise VllmError(
                    f"vLLM's answer: expected {sampling.tokens_max} tokens or an end, got {len(ids)} without one, "
                    f"after a prompt of {len(prompt)}: its context is too short. Raise vllm_server.context_tokens (on "
                    "your own server: --max-model-len), or shorten the prompt"
                )
        completions = [
            Completion(
                text=completion_text(self._tokenizer, ids, self._stop_ids),
                token_ids=tuple(ids),
                logprobs=tuple(logprobs) if sampling.temperature > 0 else (0.0,) * len(ids),
                finish="stop" if ids[-1] in self._stop_ids else "length",
            )
            for ids, logprobs in drawn_tokens
        ]
        return completions * (sampling.candidates // drawn)


def request_body(
    model: str, prompt: Sequence[int], sampling: Sampling, *, seed: int, drawn: int, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """Return the request for one group: the plain distribution at this temperature, without the model's defaults.

    Otherwise the server would take top-p, top-k and repetition penalty from the model's generation_config.json, and
    stop at the tokenizer's end token, which is not always one of the policy's.
    """
    return {
        "model": model,
        "prompt": list(prompt),
        "n": drawn,
        "seed": seed % SEED_MAX,
        "max_tokens": sampling.tokens_max,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "stop_token_ids": list(stop_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
        "stream": False,
    }


def read_choices(answer: dict[str, Any], prompt: Sequence[int], *, drawn: int) -> list[tuple[list[int], list[float]]]:
    """Return (token ids, log-probabilities) of each candidate, in the order of the server's index.

    Raises VllmError with the part that is missing or does not fit: an incomplete answer must never become an event.
    """

    def wrong(expected: str, found: object) -> VllmError:
        return VllmError(f"vLLM's answer: expected {expected}, got {str(found)[:120]}. Is it vLLM 0.10.2 or newer?")

    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != drawn or not all(isinstance(c, dict) for c in choices):
        raise wrong(f"{drawn} choices", len(choices) if isinstance(choices, list) else choices)
    found = []
    for choice in sorted(choices, key=lambda choice: int(choice.get("index", 0))):
        ids = choice.get("token_ids")
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
            raise wrong("token_ids (return_token_ids)", ids)
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            raise wrong(f"{len(ids)} log-probabilities, one for each token id", logprobs)
        if not all(isinstance(value, (int, float)) and math.isfinite(value) and value < 1e-3 for value in logprobs):
            raise wrong("finite log-probabilities", logprobs)
        asked = choice.get("prompt_token_ids")
        if asked is not None and asked != list(prompt):
            raise wrong("the prompt's token ids as they were sent", asked)
        # Rounding may put the log-probability of a certain token slightly above 0.
        found.append((ids, [min(float(value), 0.0) for value in logprobs]))
    return found


class ServedVersion:
    """A policy version on vLLM servers that follows the newest one; only its tokenizer is loaded here."""

    def __init__(
        self,
        folder: Path,
        reference: PolicyRef,
        *,
        url: str,
        settings: VllmSettings,
        directory: Path,
        seen_as: str = "",
        staleness_max: int,
        difference_max: float,
    ) -> None:
        """url: one address, or several, separated by commas. directory: the run's folder, which gets the adapters.

        seen_as: the folder's path on the servers' machines. difference_max: `learner.update.logprob_difference_max`.
        Raises PolicyError if the version is not a LoRA adapter, CheckpointError if it is not the announced version or
        not whole, and the errors of `Adapters.use`.
        """
        if folder.is_dir():
            read_adapter(folder)  # vLLM gets new versions only as adapters.
        check_version(folder, reference)
        self.tokenizer = read_tokenizer(folder)
        self.tokenizer_sha256 = file_sha256(folder / TOKENIZER)
        self._replicas = Replicas(settings, addresses(url))
        self._adapters = Adapters(
            self._replicas,
            directory / FOLDER,
            kept=staleness_max + 2,
            difference_max=difference_max,
            seen_as=f"{seen_as.rstrip('/')}/{FOLDER}" if seen_as else "",
        )
        self._adapters.use(reference, folder)
        self._sampler = VllmSampler(
            self._replicas,
            self._adapters,
            reference,
            tokenizer=self.tokenizer,
            stop_ids=read_stop_ids(folder),
            requests_in_flight=settings.requests_in_flight,
        )

    @property
    def sampler(self) -> VllmSampler:
        """Return the sampler."""
        return self._sampler

    def refresh(self, folder: Path, reference: PolicyRef) -> None:
        """Load a newer version into all servers and use it from now on.

        Raises CheckpointError if it is not the announced version or not whole, and the errors of `Adapters.use`; the
        previous version then stays in use.
        """
        check_version(folder, reference)
        self._adapters.use(reference, folder)
        self._sampler.policy = reference

    def close(self) -> None:
        """Release the version in use."""
        self._adapters.close()
        self._replicas.close()
