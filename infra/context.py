"""What every verb starts from: the home directory, the settings, and services that answer.

Nothing is read before it is asked for, so that `status` and `--help` need not load a learner's libraries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from infra.home import Home
from infra.installation import installation_id
from infra.interrupts import at_hard_end
from infra.layers import combine, environment_layer, read_toml
from infra.progress import Report
from infra.services.errors import ServiceError
from infra.services.local import Endpoints, LocalServices
from infra.services.policy_server import PolicyServer
from infra.services.settings import LocalSettings, ServiceSettings
from infra.services.vllm import VllmServerSettings
from learner.vllm import VllmSettings
from search_env.engine import ElasticsearchSettings, connect
from streams.clients import KafkaSettings
from streams.failpoints import FailpointSettings

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

    from infra.settings import Settings

T = TypeVar("T", bound=msgspec.Struct)


class ConnectionTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of the settings that say where the services are; every other table is left for `Settings` to check."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    services: LocalSettings = LocalSettings()


class VllmTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of the settings that say where vLLM is and how ours is run."""

    vllm: VllmSettings = VllmSettings()
    vllm_server: VllmServerSettings = VllmServerSettings()


class FailpointTable(msgspec.Struct, frozen=True, kw_only=True):
    """The one table of the settings that says where workers are to die."""

    failpoints: FailpointSettings = FailpointSettings()


class App:
    """The global options of one call; settings are layered: defaults, recipe, file, environment."""

    def __init__(
        self,
        home: Home,
        *,
        config: Path | None = None,
        recipe: Path | None = None,
        settings: Settings | None = None,
        endpoints: Endpoints | None = None,
    ) -> None:
        """settings: instead of files and variables. endpoints: of services that run, instead of their settings."""
        self.home = home
        self.config = config
        self._recipe = recipe
        self._given = settings
        self._endpoints = endpoints

    @cached_property
    def connections(self) -> ServiceSettings:
        """Return where Kafka and Elasticsearch are and how ours are run.

        Raises SettingsError naming the source and path of whatever is unknown or out of range in these tables.
        """
        tables = self.tables(ConnectionTables)
        kafka, elasticsearch = tables.kafka, tables.elasticsearch
        if self._endpoints is not None:
            kafka = msgspec.structs.replace(kafka, bootstrap=self._endpoints.kafka)
            elasticsearch = msgspec.structs.replace(elasticsearch, url=self._endpoints.elasticsearch)
        return ServiceSettings(kafka=kafka, elasticsearch=elasticsearch, local=tables.services)

    @cached_property
    def settings(self) -> Settings:
        """Return the whole tree.

        Raises SettingsError naming the source and path of whatever is unknown or out of range.
        """
        from infra.settings import Settings

        settings = self._given or combine(Settings, self._layers())
        return msgspec.structs.replace(
            settings, kafka=self.connections.kafka, elasticsearch=self.connections.elasticsearch
        )

    def tables(self, kind: type[T]) -> T:
        """Return some tables of the settings, those that `kind` has as fields, without importing what others steer.

        Raises SettingsError naming the source and path of whatever is unknown or out of range in these tables.
        """
        if self._given is None:
            return combine(kind, self._layers())
        return kind(**{name: getattr(self._given, name) for name in kind.__struct_fields__})

    def at(self, endpoints: Endpoints) -> App:
        """Return this app with the addresses of services that run."""
        return App(self.home, config=self.config, recipe=self._recipe, settings=self._given, endpoints=endpoints)

    def with_recipe(self, recipe: Path) -> App:
        """Return this app with a recipe under the user's own file and variables."""
        return App(self.home, config=self.config, recipe=recipe, endpoints=self._endpoints)

    def with_changes(self, source: str, changes: dict[str, Any]) -> App:
        """Return this app with a layer over all others; `source` names it in errors.

        Raises SettingsError naming the source and path of whatever is unknown or out of range.
        """
        from infra.settings import Settings

        below = self._layers() if self._given is None else [("the settings", msgspec.to_builtins(self._given))]
        return self.with_settings(combine(Settings, [*below, (source, changes)]))

    def with_settings(self, settings: Settings) -> App:
        """Return this app with other settings, at the same services."""
        kafka, elasticsearch = self.connections.kafka, self.connections.elasticsearch
        settings = msgspec.structs.replace(
            settings, kafka=kafka, elasticsearch=elasticsearch, services=self.connections.local
        )
        return App(self.home, config=self.config, settings=settings)

    def local_services(self, *, attached: bool = False) -> LocalServices:
        """Return the services of this home, local or external as the settings say; nothing is started."""
        return LocalServices(self.home.root, self.connections, attached=attached)

    def policy_server(self) -> PolicyServer:
        """Return the vLLM of this home; nothing is started."""
        return PolicyServer(self.home.root, self.tables(VllmTables).vllm_server)

    @contextmanager
    def running_services(self, report: Report) -> Iterator[App]:
        """Give this app with the addresses of services that run: those that are up, or ones started for the while.

        What was started here stops again at the end, also after a crash of this process; what ran before runs on.
        """
        try:
            endpoints = self.local_services().endpoints()
        except ServiceError:
            services = self.local_services(attached=True)
            with at_hard_end(lambda: "what it started of Kafka and Elasticsearch is being stopped by their guardian"):
                try:
                    yield self.at(services.up(report))
                finally:
                    services.stop_started(report)
        else:
            yield self.at(endpoints)

    def worker_environment(self) -> dict[str, str]:
        """Return the variables by which a worker process finds the same services and the same settings file."""
        variables = {
            "SEARCHLOOP_KAFKA__BOOTSTRAP": self.connections.kafka.bootstrap,
            "SEARCHLOOP_ELASTICSEARCH__URL": self.connections.elasticsearch.url,
        }
        return variables | ({"SEARCHLOOP_CONFIG": str(self.config.absolute())} if self.config else {})

    @cached_property
    def installation(self) -> str:
        """Return the id of this home, which its indexes carry on whichever cluster.

        Raises SettingsError if the file that holds it is damaged.
        """
        return installation_id(self.home.root)

    def engine(self) -> Elasticsearch:
        """Return a client of the search engine."""
        return connect(self.connections.elasticsearch)

    def _layers(self) -> list[tuple[str, dict[str, Any]]]:
        files = [path for path in (self._recipe, self.config) if path is not None]
        layers = [(str(path), read_toml(path)) for path in files]
        return [*layers, ("the environment (SEARCHLOOP_…)", environment_layer(os.environ))]
