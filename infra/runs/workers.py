"""One worker of a run, wired from the run's own settings, for `searchloop run ROLE` (the sink: `sinks`).

The settings that shape the run are those that it was started with; its folder keeps them. The addresses of Kafka and
Elasticsearch come from the caller.
"""

from __future__ import annotations

import msgspec

from infra.app.app import App
from infra.app.run_settings import RunSettings, read_run_settings
from infra.recipes.recipe import load_recipe
from infra.runs.posts import post_of
from streams.stopping import Stop
from streams.tracing import traced


def run_worker(app: App, *, role: str, run: str, worker: int, stop: Stop) -> None:
    """Run a generator, learner, environment or evaluator until `stop` is set.

    worker: number that tells workers of one role apart. A restarted worker of the same number takes its partitions back
    at once.
    """
    kept = read_run_settings(app.home.run(run))
    with traced(kept.settings.tracing, run=run, stage=role):
        _run_role(app, kept, role=role, worker=worker, stop=stop)


def _run_role(app: App, kept: RunSettings, *, role: str, worker: int, stop: Stop) -> None:
    run, run_dir = kept.run, app.home.run(kept.run)
    settings = kept.settings
    member = f"{role}-{worker}"
    post = post_of(app, run=run, member=member, delivery=settings.delivery, stop=stop, topics=settings.kafka)
    if role == "generator":
        from infra.runs.serving import version_opener
        from learner.workers import run_generator

        run_generator(
            post,
            checkpoints=run_dir.checkpoints,
            seed=kept.seed,
            generation=settings.generation,
            encode_prompt=load_recipe(settings.train.recipe).encoder(settings),
            batch=settings.batch,
            open_version=version_opener(app, kept),
        )
    elif role == "learner":
        from infra.runs.learners import learner_processes
        from learner.helping import help_learner
        from learner.shared_checkpoints import SharedCheckpoints
        from learner.workers import run_learner

        with learner_processes(app, run, worker=worker, count=settings.learner.processes, stop=stop) as processes:
            if processes.rank:
                help_learner(
                    run_dir.checkpoints,
                    run=run,
                    learner=settings.learner,
                    no_repeat=settings.generation.no_repeat,
                    processes=processes,
                    stop=stop,
                    shared=SharedCheckpoints(app.store, run, run_dir.checkpoints) if app.store is not None else None,
                )
                return
            written = settings.generation
            limits = settings.learner.limits.covering(candidates=written.candidates, tokens_max=written.tokens_max)
            run_learner(
                post,
                run_dir=run_dir,
                batch=settings.batch,
                learner=msgspec.structs.replace(settings.learner, limits=limits),
                generation=settings.generation,
                updates_max=kept.updates,
                origin=kept.origin,
                processes=processes,
                probes=settings.vllm.checked_prompts if settings.generation.backend == "vllm" else 0,
            )
    elif role == "evaluator":
        from infra.runs.evaluating import run_evaluator

        run_evaluator(app, post)
    else:
        from infra.runs.environments import open_environment
        from search_env.environments import WaitingEnvironment
        from search_env.waiting import run_waiting_environment
        from search_env.workers import run_environment

        with open_environment(app, kept) as environment:
            if isinstance(environment, WaitingEnvironment):
                run_waiting_environment(post, environment)
            else:
                run_environment(post, environment)
