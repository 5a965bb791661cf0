"""The policy version that is served, and the answers that are ready: looked for on disk, and swapped while serving."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from infra.app.home import RunFolder
from infra.promotion.state import read_ramp, read_routes_file, routes_paths
from infra.serving.tail import Answered, Tail, TailStart
from learner.checkpoints import CheckpointError
from learner.versions import find_version
from search_env.leser.expansion_cache import FOLDER, Expanded
from search_env.serving.answers import Answers
from search_env.serving.candidates import OpenGroups, open_group_files, read_open_groups
from search_env.serving.ramp import Ramp
from search_env.serving.routing import Router
from search_env.serving.settings import ServeSettings
from streams.errors import SettingsError
from streams.topics import version_name

log = logging.getLogger(__name__)


class Policies:
    """The answers of a server. `answers` and `tail` are replaced, never changed, so a request sees one state."""

    def __init__(
        self,
        start: TailStart,
        folder: RunFolder,
        live: RunFolder,
        index_version: str,
        settings: ServeSettings,
        answered: Answered = lambda *_: None,
    ) -> None:
        """start: its policy is a name, such as "best", that may come to mean another version.

        folder: of the run whose versions serve. live: of the run of the traffic, which has the ramp. answered: see
        `Tail`.
        """
        self._answered = answered
        self.answers = Answers({})
        self.open_groups = OpenGroups((), index=index_version)
        self.tail: Tail | None = None
        self.ramp: Ramp | None = None
        self.routers: dict[str, Router] = {}
        self.trouble = ""
        self._start = start
        self._folder = folder
        self._live = live
        self._index_version = index_version
        self._settings = settings
        self._seen: dict[Path, int] = {}
        self._seen_groups: dict[Path, int] = {}
        self._routes_seen: dict[Path, int] = {}

    async def follow(self) -> None:
        """Look for new answers and new versions, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.reload_seconds)

    async def look(self) -> None:
        """Load what is new, beside what serves, and put it in its place. What fails stays as it is.

        The ramp comes first: a version that is rolled back leaves at once. One damaged file holds nothing else up.
        """
        troubles: list[str] = []
        for load in (
            self._load_ramp,
            self._load_routes,
            self._load_answers,
            self._load_open_groups,
            self._load_version,
        ):
            try:
                await load()
            except Exception as error:
                troubles.append(f"{type(error).__name__}: {error}")
        trouble = "; ".join(troubles)
        if trouble and trouble != self.trouble:
            log.warning("serving goes on as it was: %s", trouble)
        self.trouble = trouble

    def close(self) -> None:
        """End the policy's process."""
        if self.tail is not None:
            self.tail.close()

    async def _load_ramp(self) -> None:
        self.ramp = read_ramp(self._live)

    async def _load_routes(self) -> None:
        found = {path: path.stat().st_mtime_ns for path in routes_paths(self._live)}
        if found == self._routes_seen:
            return
        routers: dict[str, Router] = {}
        seen, troubles = dict(found), list[str]()
        for path, changed in found.items():
            if self._routes_seen.get(path) == changed and path.stem in self.routers:
                routers[path.stem] = self.routers[path.stem]
                continue
            try:
                routers[path.stem] = Router(await asyncio.to_thread(read_routes_file, path))
            except SettingsError as error:
                troubles.append(str(error))
                del seen[path]  # Read again at the next look.
                if path.stem in self.routers:
                    routers[path.stem] = self.routers[path.stem]
        self.routers, self._routes_seen = routers, seen
        if troubles:
            raise SettingsError("; ".join(troubles))

    async def _load_answers(self) -> None:
        found: dict[Path, int] = {
            path: path.stat().st_mtime_ns for path in (self._folder / FOLDER).glob(f"*.{self._index_version}.jsonl")
        }
        if found != self._seen:
            answers = await asyncio.to_thread(_read_answers, list(found), self._index_version)
            self.answers, self._seen = answers, found
            log.info("%d queries have ready answers, by %s", len(answers), ", ".join(answers.policies) or "no version")

    async def _load_open_groups(self) -> None:
        found = await asyncio.to_thread(open_group_files, self._live)
        if found != self._seen_groups:
            groups = await asyncio.to_thread(read_open_groups, self._live)
            self.open_groups, self._seen_groups = OpenGroups(groups, index=self._index_version), found

    async def _load_version(self) -> None:
        if self._start.policy == "none":
            return
        _, manifest = await asyncio.to_thread(find_version, self._folder.checkpoints, self._start.policy)
        name = version_name(manifest.policy)
        if self.tail is not None and self.tail.policy == name:
            return
        if self.tail is not None and self.tail.ready:
            await self.tail.follow(name)
            log.info("policy %s serves", name)
            return
        tail = Tail(
            msgspec.structs.replace(self._start, policy=name),
            waiting_max=self._settings.tail_waiting_max,
            kept=self._settings.tail_kept,
            answered=self._answered,
        )
        try:
            await tail.open()
        except BaseException:
            tail.close()
            raise
        before, self.tail = self.tail, tail
        log.info("policy %s serves", name)
        if before is not None:
            before.close()  # Its process had died, and did not come again.


def _read_answers(paths: list[Path], index_version: str) -> Answers:
    decoder = msgspec.json.Decoder(Expanded)
    found = {}
    for path in paths:
        policy = path.name.removesuffix(f".{index_version}.jsonl")
        try:
            found[policy] = decoder.decode_lines(path.read_bytes())
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{path}: damaged ({error}). Make it again: searchloop expand --keep") from error
    return Answers(found)
