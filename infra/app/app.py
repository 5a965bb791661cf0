"""The app that every verb uses: the home directory, the settings, and running services.

The app reads nothing before a verb needs it, so `status` and `--help` do not load the learner's libraries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from infra.app.home import Home
from infra.app.installation import installation_id
from infra.app.interrupts import at_hard_end
from infra.app.layers import combine, environment_layer, read_toml, revealed_builtins
from infra.app.progress import Report
from learner.vllm import VllmSettings
from search_env.engine.client import ElasticsearchSettings, connect
from services.errors import ServiceError
from services.health import ask_elasticsearch
from services.local import PROBE_SECONDS, Endpoints, LocalServices
from services.policy_server import PolicyServer
from services.private_variables import PREFIX
from services.roles import secured, with_credentials
from services.settings import LocalSettings, ServiceSettings
from services.vllm import VllmServerSettings
from streams.acls import OPERATOR
from streams.beats import BeatSettings
from streams.failpoints import FailpointSettings
from streams.kafka_settings import KafkaSettings
from streams.secrets import reveal
from streams.shared_store import SharedStore, StoreSettings, open_store

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

    from infra.app.settings import Settings

T = TypeVar("T", bound=msgspec.Struct)

# The connection settings that a worker inherits: all except its identity.
KAFKA_DOOR = (
    "bootstrap",
    "security_protocol",
    "sasl_mechanism",
    "credentials",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "allow_insecure",
)
ENGINE_DOOR = ("url", "credentials", "ca_certs", "allow_insecure")


class ConnectionTables(msgspec.Struct, frozen=True, kw_only=True):
    """The settings tables with the addresses of the services; `Settings` checks all other tables."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    services: LocalSettings = LocalSettings()


class VllmTables(msgspec.Struct, frozen=True, kw_only=True):
    """The settings tables with the address of vLLM and the options of a local vLLM."""

    vllm: VllmSettings = VllmSettings()
    vllm_server: VllmServerSettings = VllmServerSettings()


class StoreTable(msgspec.Struct, frozen=True, kw_only=True):
    """The settings table with the address of the store that machines share."""

    store: StoreSettings = StoreSettings()


class WorkerTables(msgspec.Struct, frozen=True, kw_only=True):
    """The settings tables of a worker's process, whatever its run's are: where it must die, and how it shows life."""

    failpoints: FailpointSettings = FailpointSettings()
    beat: BeatSettings = BeatSettings()


OpenEngine = Callable[[], "Elasticsearch"]
"""A function that connects a client of the search engine: `App.engine`."""


class App:
    """The global options of one call. The layers of its settings are defaults, recipe, file and environment."""

    def __init__(
        self,
        home: Home,
        *,
        config: Path | None = None,
        recipe: Path | None = None,
        settings: Settings | None = None,
        endpoints: Endpoints | None = None,
        private: Mapping[str, str] | None = None,
        role: str = OPERATOR,
    ) -> None:
        """settings: replaces files and variables. endpoints: addresses of running services; replaces their settings.

        private: variables that were taken out of the environment. role: the role that calls the services.
        """
        self.home = home
        self.config = config
        self.role = role
        self._private = dict(private or {})
        self._recipe = recipe
        self._given = settings
        self._endpoints = endpoints

    @cached_property
    def connections(self) -> ServiceSettings:
        """Return the addresses of Kafka and Elasticsearch, and the options of local ones.

        Raises SettingsError with the source and path of any value in these tables that is unknown or out of range.
        """
        tables = self.tables(ConnectionTables)
        kafka, elasticsearch = tables.kafka, tables.elasticsearch
        if self._endpoints is not None:
            kafka, elasticsearch = secured(
                self.home.root.absolute(),
                kafka,
                elasticsearch,
                bootstrap=self._endpoints.kafka,
                url=self._endpoints.elasticsearch,
            )
        kafka, elasticsearch = with_credentials(kafka, elasticsearch, role=self.role)
        return ServiceSettings(kafka=kafka, elasticsearch=elasticsearch, local=tables.services)

    @cached_property
    def settings(self) -> Settings:
        """Return the whole settings tree.

        Raises SettingsError with the source and path of any value that is unknown or out of range.
        """
        from infra.app.settings import Settings

        settings = self._given or combine(Settings, self._layers())
        return msgspec.structs.replace(
            settings, kafka=self.connections.kafka, elasticsearch=self.connections.elasticsearch
        )

    def tables(self, kind: type[T]) -> T:
        """Return the settings tables that are fields of `kind`, without importing the modules of other tables.

        Raises SettingsError with the source and path of any value in these tables that is unknown or out of range.
        """
        if self._given is None:
            return combine(kind, self._layers())
        return kind(**{name: getattr(self._given, name) for name in kind.__struct_fields__})

    def at(self, endpoints: Endpoints) -> App:
        """Return this app with the addresses of running services."""
        return self._copy(recipe=self._recipe, settings=self._given, endpoints=endpoints)

    def as_role(self, role: str) -> App:
        """Return this app with the credentials of a worker and with its longer timeout for services that are down."""
        return self._copy(recipe=self._recipe, settings=self._given, endpoints=self._endpoints, role=role)

    def with_recipe(self, recipe: Path) -> App:
        """Return this app with a recipe as the layer below the user's file and variables."""
        return self._copy(recipe=recipe, endpoints=self._endpoints)

    def with_changes(self, source: str, changes: dict[str, Any]) -> App:
        """Return this app with one more layer, above all others; `source` names it in errors.

        Raises SettingsError with the source and path of any value that is unknown or out of range.
        """
        from infra.app.settings import Settings

        below = self._layers() if self._given is None else [("the settings", revealed_builtins(self._given))]
        return self.with_settings(combine(Settings, [*below, (source, changes)]))

    def with_settings(self, settings: Settings) -> App:
        """Return this app with other settings and the same services."""
        kafka, elasticsearch = self.connections.kafka, self.connections.elasticsearch
        settings = msgspec.structs.replace(
            settings, kafka=kafka, elasticsearch=elasticsearch, services=self.connections.local
        )
        return self._copy(settings=settings)

    def local_services(self, *, attached: bool = False, secure: bool = False) -> LocalServices:
        """Return the services of this home, local or external according to the settings; nothing is started.

        secure: True enables security regardless of the settings.
        """
        connections = self.connections
        if secure:
            local = msgspec.structs.replace(connections.local, secure=True)
            connections = msgspec.structs.replace(connections, local=local)
        return LocalServices(self.home.root, connections, attached=attached)

    def policy_server(self) -> PolicyServer:
        """Return the vLLM of this home; nothing is started."""
        return PolicyServer(self.home.root, self.tables(VllmTables).vllm_server)

    @contextmanager
    def running_services(self, report: Report) -> Iterator[App]:
        """Give this app with the addresses of running services, and start local ones that are down.

        Services that were started here stop at the end, even if this process crashes. Others continue to run.
        """
        try:
            endpoints = self.local_services().endpoints()
        except ServiceError:
            services = self.local_services(attached=True)
            with at_hard_end(lambda: "the guardian is stopping the services that it started"):
                try:
                    yield self.at(services.up(report))
                finally:
                    services.stop_started(report)
        else:
            yield self.at(endpoints)

    def worker_environment(self) -> dict[str, str]:
        """Return the environment variables that give a worker process the same services and settings file.

        Pass the secrets among them through `private_variables.for_role` and a pipe, never in a child's first
        environment.
        """
        kafka, elasticsearch = self.connections.kafka, self.connections.elasticsearch
        given: dict[str, dict[str, Any]] = {
            "KAFKA": {name: getattr(kafka, name) for name in KAFKA_DOOR},
            "ELASTICSEARCH": {name: getattr(elasticsearch, name) for name in ENGINE_DOOR},
            "STORE": {"url": self.tables(StoreTable).store.url},
        }
        given["KAFKA"]["ssl_key_password"] = reveal(kafka.ssl_key_password)
        if not kafka.credentials:
            given["KAFKA"] |= {"sasl_username": kafka.sasl_username, "sasl_password": reveal(kafka.sasl_password)}
        if not elasticsearch.credentials:
            given["ELASTICSEARCH"] |= {
                "api_key": reveal(elasticsearch.api_key),
                "username": elasticsearch.username,
                "password": reveal(elasticsearch.password),
            }
        variables = {
            f"{PREFIX}{table}__{name.upper()}": str(value).lower() if isinstance(value, bool) else value
            for table, settings in given.items()
            for name, value in settings.items()
            if value
        }
        return variables | ({"SEARCHLOOP_CONFIG": str(self.config.absolute())} if self.config else {})

    @property
    def private(self) -> dict[str, str]:
        """The variables that were taken out of the environment, for a child that gets them through a pipe."""
        return dict(self._private)

    @cached_property
    def store(self) -> SharedStore | None:
        """Return the store that this run's machines share; None if one machine does all.

        Raises SettingsError if its address is not one.
        """
        return open_store(self.tables(StoreTable).store)

    @cached_property
    def installation(self) -> str:
        """Return the id of this home; its indexes carry the id on every cluster.

        Raises SettingsError if the file of the id is damaged.
        """
        return installation_id(self.home.root)

    def engine(self) -> Elasticsearch:
        """Return a client of the search engine.

        Raises ServiceError within seconds if the address, key, certificate or protocol is wrong. The client retries
        temporary failures, such as an engine that is down.
        """
        answer = ask_elasticsearch(self.connections.elasticsearch, PROBE_SECONDS)
        if answer.lasting:
            raise ServiceError(answer.reason)
        return connect(self.connections.elasticsearch)

    def _layers(self) -> list[tuple[str, dict[str, Any]]]:
        files = [path for path in (self._recipe, self.config) if path is not None]
        layers = [(str(path), read_toml(path)) for path in files]
        return [*layers, ("the environment (SEARCHLOOP_…)", environment_layer(os.environ | self._private))]

    def _copy(self, *, role: str = "", **changes: Any) -> App:
        return App(self.home, config=self.config, private=self._private, role=role or self.role, **changes)
