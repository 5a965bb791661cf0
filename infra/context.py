"""What every verb starts from: the home directory, the settings, and services that answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from elasticsearch import Elasticsearch

from infra.config import Settings
from infra.home import Home
from infra.progress import Report
from infra.services.errors import ServiceError
from infra.services.local import Endpoints, LocalServices
from infra.services.settings import ServiceSettings
from search_env.engine import connect


class App(msgspec.Struct, frozen=True, kw_only=True):
    """The global options of one call."""

    home: Home
    settings: Settings
    config: Path | None = None

    def local_services(self, *, attached: bool = False) -> LocalServices:
        """Return the services of this home, local or external as the settings say; nothing is started."""
        settings = ServiceSettings(
            kafka=self.settings.kafka, elasticsearch=self.settings.elasticsearch, local=self.settings.services
        )
        return LocalServices(self.home.root, settings, attached=attached)

    @contextmanager
    def running_services(self, report: Report) -> Iterator[App]:
        """Give this app with the addresses of services that run: those that are up, or ones started for the while.

        What was started here stops again at the end, also after a crash of this process.
        """
        try:
            endpoints = self.local_services().endpoints()
        except ServiceError:
            services = self.local_services(attached=True)
            try:
                yield self.at(services.up(report))
            finally:
                services.down()
        else:
            yield self.at(endpoints)

    def at(self, endpoints: Endpoints) -> App:
        """Return this app with the given addresses in its settings."""
        kafka = msgspec.structs.replace(self.settings.kafka, bootstrap=endpoints.kafka)
        elasticsearch = msgspec.structs.replace(self.settings.elasticsearch, url=endpoints.elasticsearch)
        settings = msgspec.structs.replace(self.settings, kafka=kafka, elasticsearch=elasticsearch)
        return msgspec.structs.replace(self, settings=settings)

    def worker_environment(self) -> dict[str, str]:
        """Return the variables by which a worker process finds the same services and the same settings file."""
        variables = {
            "SEARCHLOOP_KAFKA__BOOTSTRAP": self.settings.kafka.bootstrap,
            "SEARCHLOOP_ELASTICSEARCH__URL": self.settings.elasticsearch.url,
        }
        return variables | ({"SEARCHLOOP_CONFIG": str(self.config.absolute())} if self.config else {})

    def engine(self) -> Elasticsearch:
        """Return a client of the search engine."""
        return connect(self.settings.elasticsearch)
