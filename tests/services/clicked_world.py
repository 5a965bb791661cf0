"""What tests of learning from clicks share: a joiner that decides within seconds, and a policy that knows nothing."""

from __future__ import annotations

from infra.app.app import App
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import Prepared
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.learning import write_first_checkpoint
from learner.policy import build_tiny, save_policy
from learner.policy_settings import PolicySettings, TinySettings
from learner.prompts import PromptSettings, with_choices
from search_env.feedback.attribution import JoinSettings
from search_env.feedback.bots import BotSettings
from search_env.leser.environment import LeserEnvironmentSettings
from streams.click_rewards import ClickRewardSettings
from streams.events import Context, Request

JOIN = JoinSettings(
    window_ms=1_500,
    lateness_ms=500,
    early_ms=500,
    memory_ms=5_000,
    settle_seconds=0.2,
    provisional_seconds=600,
    bots=BotSettings(window_ms=1_000, dwell_ms=0, everything_share=0, impressions_max=0),
)
WORDS = ("lamp", "cup", "oak", "blue")


def settings_for(live: str, *, impressions_min: int = 4) -> Settings:
    """Return the settings of a run that learns from the clicks of a live run."""
    clicks = ClickRewardSettings(live=live, impressions_min=impressions_min, wait_seconds=900, client_share_max=0.5)
    return Settings(
        join=JOIN,
        leser=LeserEnvironmentSettings(rewards="clicks", clicks=clicks),
        prompts=PromptSettings(terms=len(WORDS), attributes=0, neighbours=0, select=True),
        policy=PolicySettings(tiny=TinySettings(vocabulary_size=300, hidden_size=32, layers=1, feedforward_size=64)),
        generation=GenerationSettings(candidates=4, tokens_max=4, temperature=1.0),
        batch=BatchSettings(groups=2, staleness_max=0),
    )


def untaught_run(app: App, run: str, *, index: str, version: str, queries: list[str], updates: int) -> Prepared:
    """Make a run whose policy points to words of its prompt at random; no model taught it, and none rewards it."""
    settings = app.settings
    folder = app.home.run(run)
    folder.mkdir(parents=True)
    policy = build_tiny([*WORDS, *queries], settings.policy.tiny, pointers=settings.prompts.pointers)
    write_first_checkpoint(folder.checkpoints, save_policy(policy, folder.untaught))
    kept = RunSettings(
        run=run, recipe="leser", index=index, index_version=version, seed=0, updates=updates, settings=settings
    )
    write_run_settings(folder, kept)
    context = with_choices(Context(terms=WORDS), settings.prompts)
    asked = [
        Request(request_id="", run=run, query_id=f"q-{text}", query=text, index=version, context=context)
        for text in queries
    ]
    return Prepared(run=run, index=version, asked=asked)
