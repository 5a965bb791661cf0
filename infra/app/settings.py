"""All settings as one typed tree: each table is a struct that stands beside the code which it steers.

Importing this imports every room, torch included; verbs that only look at services get by with `infra.app.app`.
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
    """How long a run learns, and from which of the training queries.

    recipe: what is taught: "leser", "relsum", "resume", or one's own as package.module:Class (infra/RECIPES.md).
    updates: optimizer steps.
    warm_up: False begins from the untaught policy (an ablation). shuffle_rewards: the control that must not gain.
    """

    recipe: str = "leser"
    updates: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300
    warm_up: bool = True
    shuffle_rewards: bool = False


class AlternationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a summarizer and what reads its summaries take turns: ReSuMe's retriever, or ReLSum's cross-encoder.

    Of these, begin, samples and the two of the scale are the retriever's alone.
    begin: what the retriever is adapted to before the first turn: "nothing" (the paper), "random" values of each
    product, or whole "documents". A retriever that was never adapted hardly tells two summaries of one product apart.
    adapt: False leaves the reader as it began (the paper's ablation), and a turn is the summarizer's alone.
    adapt_from: a turn adapts the version of the turn "before" (the paper), or the "first" one, adapted to nothing, so
    that it has nothing to unlearn; each turn then costs all of `retriever.steps` and all versions have had as many.
    samples: texts sampled for each product, of which the one that the turn's reward likes best stands for it; 0: one
    text, greedily (the paper). Of a product that no training query asks for, the first sampled one stands.
    turns_max: pairs of turns; the paper allows ten, and saw three to five do. updates: of the summarizer in each turn;
    0: it stays as it began (a control, which learns nothing).
    gain_min: what a turn must add to the best measure of dev queries (RR@10; nDCG@5 with a cross-encoder), or it ends;
    patience: turns that may fail to.
    measure_scale: measure the edge scale of the reward's bins anew in each turn, on measured_products products.
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
    """The whole tree; a TOML table or an environment variable's first part names a field of this."""

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
    resume: ResumeEnvironmentSettings = ResumeEnvironmentSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    vectors: VectorSettings = VectorSettings()
    alternation: AlternationSettings = AlternationSettings()
