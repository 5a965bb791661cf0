"""All settings as one typed tree. Each table is a struct beside the code that it controls.

This module imports all packages, torch included. Verbs that only query services import `infra.app.app` instead.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from infra.services.settings import LocalSettings
from infra.services.vllm import VllmServerSettings
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.learning import LearnerSettings
from learner.policy import PolicySettings
from learner.preference import PreferenceSettings
from learner.product_prompts import ProductPromptSettings
from learner.prompts import PromptSettings
from learner.retriever import RetrieverSettings
from learner.vllm import VllmSettings
from learner.warmup import WarmupSettings
from search_env.catalogue.demand import DemandSettings
from search_env.catalogue.generated import DemoSettings
from search_env.engine.client import ElasticsearchSettings
from search_env.engine.searching import RetrievalSettings
from search_env.engine.vectors import VectorSettings
from search_env.leser.context import ContextSettings
from search_env.leser.environment import LeserEnvironmentSettings
from search_env.leser.feedback_terms import FeedbackSettings
from search_env.leser.lessons import LessonSettings
from search_env.leser.nearest_terms import NearestTermsSettings
from search_env.leser.neighbours import NeighbourSettings
from search_env.leser.teachers import TeacherSettings
from search_env.models.crossencoder import CrossEncoderSettings
from search_env.models.embeddings import EmbeddingSettings
from search_env.models.relevance import RelevanceSettings
from search_env.models.relevance_training import GbdtSettings
from search_env.queries.intents import IntentSettings
from search_env.queries.judged_lists import ListSettings
from search_env.relsum.environment import RelsumEnvironmentSettings
from search_env.relsum.lessons import SummaryLessonSettings
from search_env.resume.environment import ResumeEnvironmentSettings
from storage.monitor.windows import MonitorSettings
from storage.sink import SinkSettings
from streams.clients import KafkaSettings
from streams.delivery import DeliverySettings
from streams.failpoints import FailpointSettings


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a training run: its recipe, its length and its controls.

    recipe: "leser", "relsum", "resume", or your own recipe as package.module:Class (infra/RECIPES.md).
    updates: number of optimizer steps.
    warm_up: False starts from the untrained policy (an ablation). shuffle_rewards: True shuffles the rewards, a control
    that must not gain.
    """

    recipe: str = "leser"
    updates: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300
    warm_up: bool = True
    shuffle_rewards: bool = False


class DevSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dev queries, which train nothing, measured while a run learns: they find the best version, and the end.

    every: a version is measured every this many updates, a multiple of `learner.keep_every`, so that it is kept.
    0: never. queries_max: dev queries of the index that are asked. measure: as `evaluate` names it.
    gain_min: a version is the new best if its measure is more than this above that of the best so far.
    patience: `train` ends after this many measured versions in a row that are no new best. 0: it makes all updates.
    """

    every: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    queries_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 300
    measure: str = "nDCG@10"
    gain_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    patience: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


class AlternationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the turns in which a summarizer and the reader of its summaries are trained.

    The reader is ReSuMe's retriever or ReLSum's cross-encoder.
    begin, samples, measure_scale and measured_products apply only to the retriever.
    begin: the texts that the retriever is adapted to before the first turn: "nothing" (the paper), "random" values of
    each product, or whole "documents". An unadapted retriever hardly distinguishes two summaries of one product.
    adapt: False never adapts the reader (the paper's ablation); a turn then trains only the summarizer.
    adapt_from: the version that a turn adapts: the one of the turn "before" (the paper), or the "first", unadapted one.
    The "first" has nothing to unlearn; each turn then costs all of `retriever.steps`, and all versions have had the
    same number of steps.
    samples: number of texts sampled per product; the text with the highest reward of the turn represents the product.
    0: one greedy text (the paper). If no training query asks for a product, its first sample represents it.
    turns_max: maximum number of pairs of turns; the paper allows ten, and three to five were enough. updates: number of
    the summarizer's updates per turn; 0: the summarizer never changes (a control, which learns nothing).
    gain_min: the gain on dev queries (RR@10; nDCG@5 for a cross-encoder) that a turn must add to the best turn so far.
    patience: the turns end after this number of consecutive turns without the gain.
    measure_scale: True measures the edge scale of the reward's bins again in each turn, on measured_products products.
    """

    begin: Literal["nothing", "random", "documents"] = "nothing"
    adapt: bool = True
    adapt_from: Literal["before", "first"] = "before"
    samples: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    turns_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    updates: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 60
    gain_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.002
    patience: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    measure_scale: bool = True
    measured_products: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 128


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole tree; each field is a TOML table, or the first part of an environment variable."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    services: LocalSettings = LocalSettings()
    delivery: DeliverySettings = DeliverySettings()
    demo: DemoSettings = DemoSettings()
    intents: IntentSettings = IntentSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    relevance: RelevanceSettings = RelevanceSettings()
    gbdt: GbdtSettings = GbdtSettings()
    context: ContextSettings = ContextSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    nearest_terms: NearestTermsSettings = NearestTermsSettings()
    teacher: TeacherSettings = TeacherSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    lessons: LessonSettings = LessonSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    leser: LeserEnvironmentSettings = LeserEnvironmentSettings()
    demand: DemandSettings = DemandSettings()
    lists: ListSettings = ListSettings()
    cross_encoder: CrossEncoderSettings = CrossEncoderSettings()
    relsum: RelsumEnvironmentSettings = RelsumEnvironmentSettings()
    summary_lessons: SummaryLessonSettings = SummaryLessonSettings()
    policy: PolicySettings = PolicySettings()
    prompts: PromptSettings = PromptSettings()
    product_prompts: ProductPromptSettings = ProductPromptSettings()
    reading_warmup: WarmupSettings = WarmupSettings(epochs_max=1, learning_rate=3e-3, batch_size=16)
    warmup: WarmupSettings = WarmupSettings()
    preference: PreferenceSettings = PreferenceSettings()
    generation: GenerationSettings = GenerationSettings()
    vllm: VllmSettings = VllmSettings()
    vllm_server: VllmServerSettings = VllmServerSettings()
    batch: BatchSettings = BatchSettings()
    learner: LearnerSettings = LearnerSettings()
    sink: SinkSettings = SinkSettings()
    monitor: MonitorSettings = MonitorSettings()
    failpoints: FailpointSettings = FailpointSettings()
    train: TrainSettings = TrainSettings()
    dev: DevSettings = DevSettings()
    resume: ResumeEnvironmentSettings = ResumeEnvironmentSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    vectors: VectorSettings = VectorSettings()
    alternation: AlternationSettings = AlternationSettings()
