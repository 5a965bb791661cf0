"""The beginning of a ReSuMe run: training queries, products to ask for, and the first policy."""

from __future__ import annotations

from pathlib import Path

from infra.app.home import IndexFolder, RunFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.first_policy import first_policy
from infra.recipes.product_requests import prepared_products
from infra.recipes.recipe import NewRun, Prepared
from infra.recipes.resume.texts import summarized_values
from learner.checkpoints import CURRENT
from learner.learning import write_first_checkpoint
from learner.policy import with_lora
from search_env.resume.answered import QUERIES_FILE, answered_queries, read_answered, write_answered
from search_env.summaries.products import description_of
from streams.errors import SettingsError


def prepare(
    new: NewRun, settings: Settings, *, index: IndexFolder, run_dir: RunFolder, policies: Path, report: Report
) -> Prepared:
    """Ask for each product that answers a training query and has a choice of values; make the first policy.

    index, run_dir: the folders that `new` names. policies: the home's folder of base policies.
    Raises SettingsError for a user's own queries, which have no judgments, and if no product can be asked for.
    """
    if new.queries_file is not None:
        raise SettingsError("--queries: ReSuMe needs judged training queries; leave it out to take the index's own")
    if (run_dir / QUERIES_FILE).is_file():
        answered = read_answered(run_dir)
    else:
        answered = answered_queries(index, new.held_out)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_answered(run_dir, answered)
    values = summarized_values(index, answered, settings.product_prompts)
    answering = (values.product(name) for name in values.documents if name in answered.by_document)
    asked = [each for each in answering if len(each.values) > 1]
    if not asked:
        raise SettingsError(
            f"index {new.index!r} has no product with two values beside its title that answers a training query; "
            "ReSuMe needs a catalogue with attributes"
        )
    if not (run_dir.checkpoints / CURRENT).is_file():
        report("making the policy", 0, 0)
        texts = (f"{each.title} {description_of(each)}" for each in map(values.product, values.documents))
        pointers = settings.product_prompts.values
        policy = first_policy(
            settings.policy, texts, pointers=pointers, policies=policies, run_dir=run_dir, seed=new.seed
        )
        write_first_checkpoint(run_dir.checkpoints, with_lora(policy, settings.policy.lora))
    return prepared_products(index, new.run, asked)
