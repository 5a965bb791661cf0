"""The place where a run's generators find their policy: their own process, or a vLLM server, started or given.

Settings that cannot work are refused before anything starts. vLLM does not know the no-repeat rule, and it takes new
versions only as LoRA adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from infra.app.app import App, VllmTables
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.recipe import load_recipe
from learner.checkpoints import load_current
from learner.policy import read_adapter
from learner.versions import LoadedVersion, OpenVersion
from learner.vllm import VllmClient, addresses
from services.policy_server import PolicyServer
from services.vllm import VllmModel, lora_room
from streams.devices import choose_device, release_memory
from streams.errors import SettingsError, TransientError
from streams.events import Request
from streams.secrets import reveal
from streams.whole_file import write_file

AGREEMENT_FILE = "agreement.json"
log = logging.getLogger(__name__)


def check_backend(settings: Settings) -> None:
    """Raise SettingsError if `generation.backend` cannot sample from the policy under these settings."""
    if settings.generation.backend != "vllm":
        return
    if settings.generation.no_repeat:
        raise SettingsError(
            "generation.no_repeat: expected false with generation.backend = 'vllm', got true: vLLM does not know that "
            "rule, and the learner would mask other tokens than vLLM. Set it to false, or the backend to 'transformers'"
        )
    if settings.prompts.select:
        raise SettingsError(
            "prompts.select: expected false with generation.backend = 'vllm', got true: vLLM does not know which "
            "pointers a prompt shows. Set it to false, or the backend to 'transformers'"
        )
    if settings.policy.lora.rank == 0:
        raise SettingsError(
            "policy.lora.rank: expected above 0 with generation.backend = 'vllm', got 0: new policy versions reach "
            "vLLM as LoRA adapters while it runs. Set a rank, such as 16, or the backend to 'transformers'"
        )
    lora_room(settings.policy.lora.rank)


class Serving:
    """The vLLM servers of a run while it runs; empty if the generators load the policy themselves.

    environment: variables by which workers find them. url: their addresses as in `vllm.url`; "" without a server.
    """

    def __init__(self, url: str = "", environment: dict[str, str] | None = None, server: PolicyServer | None = None):
        self.url = url
        self.environment = environment or {}
        self._server = server

    def check(self, report: Report) -> None:
        """Start our own server again if it has died."""
        if self._server is not None:
            self._server.check(report)


@contextmanager
def policy_server(
    app: App, run: str, settings: Settings, report: Report, shown: Sequence[Request] = ()
) -> Iterator[Serving]:
    """Yield the servers that a run's generators sample from: those of `vllm.url`, or ours, which stops at the end.

    shown: requests; each server's log-probabilities on their prompts are first compared with the learner's own. A
    server of several that does not answer is left out; generators check it before they use it.
    Raises AgreementError if they differ, SettingsError as `check_backend`, ServiceError if ours does not start,
    TransientError or VllmError if none of the user's answers.
    """
    check_backend(settings)
    if settings.generation.backend != "vllm":
        yield Serving()
        return
    release_memory()  # The preparation's models were on the GPU, where vLLM takes most of the memory.
    told = app.tables(VllmTables).vllm
    insecure = told.allow_insecure or settings.vllm.allow_insecure
    vllm = msgspec.structs.replace(
        settings.vllm,
        url=told.url or settings.vllm.url,
        api_key=told.api_key or settings.vllm.api_key,
        home=told.home or settings.vllm.home,
        ca_certs=told.ca_certs or settings.vllm.ca_certs,
        allow_insecure=insecure,
    )
    variables = {
        "SEARCHLOOP_VLLM__API_KEY": reveal(vllm.api_key),
        "SEARCHLOOP_VLLM__HOME": vllm.home,
        "SEARCHLOOP_VLLM__CA_CERTS": vllm.ca_certs,
        "SEARCHLOOP_VLLM__ALLOW_INSECURE": "true" if insecure else "",
    }
    variables = {name: value for name, value in variables.items() if value}
    if vllm.url:
        answering = [url for url in addresses(vllm.url) if _answers(VllmClient(url, vllm), vllm.url, report)]
        theirs = Serving(vllm.url, variables | {"SEARCHLOOP_VLLM__URL": vllm.url})
        check_logprobs(app, run, settings, Serving(",".join(answering), theirs.environment), shown, report)
        yield theirs
        return
    folder, _ = load_current(app.home.run(run).checkpoints)
    adapter = read_adapter(folder)
    server = PolicyServer(app.home.root, settings.vllm_server)
    model = VllmModel(folder=str(adapter.base.resolve()), rank=adapter.r, adapters_max=settings.batch.staleness_max + 2)
    try:
        url = server.start(model, report)
        ours = Serving(url, variables | own_door(server) | {"SEARCHLOOP_VLLM__URL": url}, server)
        check_logprobs(app, run, settings, ours, shown, report)
        yield ours
    finally:
        server.stop_started()


def _answers(client: VllmClient, named: str, report: Report) -> bool:
    """Return whether a server answers. Raises TransientError if the settings name no other, VllmError if it refuses."""
    try:
        client.models()
    except TransientError as error:
        if len(addresses(named)) == 1:
            raise
        log.warning("%s. The run begins without it", error)
        return False
    return True


def version_opener(app: App, kept: RunSettings) -> OpenVersion:
    """Return the function by which a generator of this run opens its first policy version.

    Raises ServiceError if this needs a vLLM of ours that does not run.
    """
    settings = kept.settings
    check_backend(settings)
    if settings.generation.backend != "vllm":
        return LoadedVersion
    told = app.tables(VllmTables).vllm
    door: dict[str, str] = {}
    if not told.url:
        server = app.policy_server()
        door = own_door(server) | {"SEARCHLOOP_VLLM__URL": server.url()}
    return open_served(app, kept.run, settings, url=told.url or door["SEARCHLOOP_VLLM__URL"], door=door)


def own_door(server: PolicyServer) -> dict[str, str]:
    """Return the variables that let a client in to a server of ours, which listens on this machine alone."""
    return {"SEARCHLOOP_VLLM__API_KEY": reveal(server.key()), "SEARCHLOOP_VLLM__ALLOW_INSECURE": "true"}


def open_served(app: App, run: str, settings: Settings, *, url: str, door: Mapping[str, str]) -> partial[Any]:
    """Return the function that opens a version of this run at the server of this address.

    door: variables for access to it, before our own ones: the key, and the path of our home on its machine.
    """
    from learner.serving import ServedVersion

    told = app.tables(VllmTables).vllm
    told_home = door.get("SEARCHLOOP_VLLM__HOME", told.home)
    return partial(
        ServedVersion,
        url=url,
        settings=msgspec.structs.replace(
            settings.vllm,
            api_key=door.get("SEARCHLOOP_VLLM__API_KEY") or told.api_key or settings.vllm.api_key,
            ca_certs=told.ca_certs or settings.vllm.ca_certs,
            allow_insecure="SEARCHLOOP_VLLM__ALLOW_INSECURE" in door
            or told.allow_insecure
            or settings.vllm.allow_insecure,
        ),
        directory=app.home.run(run),
        seen_as=str(Path(told_home) / "runs" / run) if told_home else "",
        staleness_max=settings.batch.staleness_max,
        difference_max=settings.learner.update.logprob_difference_max,
    )


def check_logprobs(
    app: App, run: str, settings: Settings, serving: Serving, shown: Sequence[Request], report: Report
) -> None:
    """Compare each server's log-probabilities with the learner's own on a few prompts; keep the largest differences.

    They lie in agreement.json in the run's folder.
    Raises AgreementError if a difference is above `learner.update.logprob_difference_max`, and TransientError if no
    server is left to compare.
    """
    if not addresses(serving.url):
        raise TransientError("vllm.url: expected at least one server that answers, found none. Start them, or check it")
    if not shown:
        return
    from learner.agreement import AgreementError, measure_agreement, require_agreement
    from learner.policy import load_policy

    report("comparing vllm's log-probabilities with the learner's", 0, 0)
    encode_prompt = load_recipe(settings.train.recipe).encoder(settings)
    folder, manifest = load_current(app.home.run(run).checkpoints)
    policy = load_policy(folder)
    policy.model.to(choose_device())
    found = []
    for url in addresses(serving.url):
        version = open_served(app, run, settings, url=url, door=serving.environment)(folder, manifest.policy)
        try:
            agreement = measure_agreement(
                policy,
                version.sampler,
                [encode_prompt(policy.tokenizer, request) for request in shown],
                settings.generation.sampling(),
                list(range(len(shown))),
            )
        finally:
            version.close()
        found.append(agreement)
        largest = max(found, key=lambda each: each.difference_max)
        write_file(app.home.run(run) / AGREEMENT_FILE, msgspec.json.format(msgspec.json.encode(largest)))
        try:
            require_agreement(agreement, difference_max=settings.learner.update.logprob_difference_max)
        except AgreementError as error:
            raise AgreementError(f"{url}: {error}") from error
    del policy
    release_memory()
