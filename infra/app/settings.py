"""All settings as one typed tree. Each table is a struct beside the code that it controls.

This module imports all packages, torch included. Verbs that only query services import `infra.app.app` instead.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from infra.monitoring.alert_settings import AlertSettings
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.learning import LearnerSettings
from learner.policy_settings import PolicySettings
from learner.preference import PreferenceSettings
from learner.product_prompts import ProductPromptSettings
from learner.prompts import PromptSettings
from learner.retriever import RetrieverSettings
from learner.vllm import VllmSettings
from learner.warmup import WarmupSettings
from search_env.catalogue.demand import DemandSettings
from search_env.catalogue.generated import DemoSettings
from search_env.engine.client import ElasticsearchSettings
from search_env.engine.layout import IndexLayout
from search_env.engine.ranker import RankerSettings
from search_env.engine.searching import RetrievalSettings
from search_env.engine.vectors import VectorSettings
from search_env.feedback.attribution import JoinSettings
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
from search_env.models.training_pairs import GbdtSettings
from search_env.queries.intents import IntentSettings
from search_env.queries.judged_lists import ListSettings
from search_env.relsum.environment import RelsumEnvironmentSettings
from search_env.relsum.lessons import SummaryLessonSettings
from search_env.resume.environment import ResumeEnvironmentSettings
from search_env.serving.ramp import RampSettings
from search_env.serving.routing import RouteSettings
from search_env.serving.settings import ServeSettings
from services.settings import LocalSettings
from services.vllm import VllmServerSettings
from storage.monitor.windows import MonitorSettings
from storage.questions.settings import UiSettings
from storage.sink import SinkSettings
from streams.beats import BeatSettings
from streams.delivery import DeliverySettings
from streams.descriptions import describe
from streams.failpoints import FailpointSettings
from streams.kafka_settings import KafkaSettings
from streams.shared_store import StoreSettings
from streams.tracing import TracingSettings
from streams.utility import UtilitySettings


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a training run: its recipe, its length and its controls."""

    recipe: Annotated[
        str,
        describe(
            'Recipe of the run: "leser", "relsum", "resume", or your own as package.module:Class (infra/RECIPES.md).'
        ),
    ] = "leser"
    updates: Annotated[
        int, msgspec.Meta(ge=1, le=1_000_000), describe("Number of updates after which the run ends.")
    ] = 300
    warm_up: Annotated[
        bool, describe("True begins with a supervised warm-up. False starts from the untrained policy (an ablation).")
    ] = True
    shuffle_rewards: Annotated[bool, describe("True shuffles the rewards, as a control that must not gain.")] = False


class DevSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The measuring of dev queries while a run learns: it finds the best version, and the end. They train nothing."""

    every: Annotated[
        int,
        msgspec.Meta(ge=0, le=100_000),
        describe("Updates between two measured versions, a multiple of learner.keep_every. 0 measures none."),
    ] = 0
    queries_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000),
        describe("Dev queries of the index that are asked for each version. More take longer and are more certain."),
    ] = 300
    measure: Annotated[str, describe("Measure that decides which version is the best, as evaluate names it.")] = (
        "nDCG@10"
    )
    gain_min: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("A version is the new best if its measure is more than this above the best so far."),
    ] = 0.0
    patience: Annotated[
        int,
        msgspec.Meta(ge=0, le=1000),
        describe("Measured versions in a row without a new best after which train ends. 0 makes all updates."),
    ] = 0


class AlternationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the turns in which a summarizer and the reader of its summaries are trained.

    The reader is ReSuMe's retriever or ReLSum's cross-encoder.
    begin, samples, measure_scale and measured_products apply only to the retriever.
    """

    # An unadapted retriever hardly distinguishes two summaries of one product.
    begin: Annotated[
        Literal["nothing", "random", "documents"],
        describe(
            'Texts that the retriever is adapted to before the first turn: "nothing" (the paper), "random" '
            'values of each product, or whole "documents".'
        ),
    ] = "nothing"
    adapt: Annotated[
        bool, describe("True adapts the reader in each turn. False trains only the summarizer (the paper's ablation).")
    ] = True
    # The "first" has nothing to unlearn, and all versions have had the same number of steps.
    adapt_from: Annotated[
        Literal["before", "first"],
        describe(
            'Version that a turn adapts: the one of the turn "before" (the paper), or the "first", unadapted '
            "one. Each turn then costs all of `retriever.steps`."
        ),
    ] = "before"
    samples: Annotated[
        int,
        msgspec.Meta(ge=0, le=1000),
        describe(
            "Texts sampled per product; the one with the highest reward of the turn represents it, or the first "
            "if no query asks for it. 0: one greedy text (the paper)."
        ),
    ] = 0
    # The paper allows ten, and three to five were enough.
    turns_max: Annotated[int, msgspec.Meta(ge=1, le=100), describe("Largest number of pairs of turns.")] = 10
    updates: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000),
        describe(
            "Updates of the summarizer per turn. 0: the summarizer never changes (a control, which learns nothing)."
        ),
    ] = 60
    gain_min: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Gain on dev queries that a turn must add to the best turn so far. The measure is RR@10, or nDCG@5 "
            "for a cross-encoder."
        ),
    ] = 0.002
    patience: Annotated[
        int,
        msgspec.Meta(ge=1, le=100),
        describe("Number of consecutive turns without the gain after which the turns end."),
    ] = 1
    measure_scale: Annotated[
        bool, describe("True measures the edge scale of the reward's bins again in each turn.")
    ] = True
    measured_products: Annotated[
        int, msgspec.Meta(ge=2, le=100_000), describe("Number of products on which measure_scale measures.")
    ] = 128


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole tree; each field is a TOML table, or the first part of an environment variable."""

    kafka: KafkaSettings = KafkaSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    index_layout: IndexLayout = IndexLayout()
    services: LocalSettings = LocalSettings()
    store: StoreSettings = StoreSettings()
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
    ranker: RankerSettings = RankerSettings()
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
    join: JoinSettings = JoinSettings()
    utility: UtilitySettings = UtilitySettings()
    serve: ServeSettings = ServeSettings()
    ramp: RampSettings = RampSettings()
    route: RouteSettings = RouteSettings()
    sink: SinkSettings = SinkSettings()
    monitor: MonitorSettings = MonitorSettings()
    ui: UiSettings = UiSettings()
    alerts: AlertSettings = AlertSettings()
    failpoints: FailpointSettings = FailpointSettings()
    beat: BeatSettings = BeatSettings()
    tracing: TracingSettings = TracingSettings()
    train: TrainSettings = TrainSettings()
    dev: DevSettings = DevSettings()
    resume: ResumeEnvironmentSettings = ResumeEnvironmentSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    vectors: VectorSettings = VectorSettings()
    alternation: AlternationSettings = AlternationSettings()
