"""How variants do on development examples: what every choice of layer, strength or rate is made by.

Knows examples, objectives and a loaded model. The results of test documents come from the harness, by lm-eval's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.documents import possible_hashes
from aft_harness.boosters.provenance import Score
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.shared_pass import SteeredLM
from aft_harness.progress import OnProgress, ignore
from aft_harness.training.objective import (
    RANKING_LOSS,
    Outcome,
    TaskObjective,
    mean_score,
    ranking_objectives,
)
from aft_harness.training.recipe import ChoiceNorm


def outcomes(
    lm: SteeredLM,
    examples: Sequence[Example],
    objectives: Mapping[str, TaskObjective],
    variants: Sequence[Variant] = (BASELINE,),
    on_progress: OnProgress = ignore,
) -> list[list[Outcome]]:
    """The outcome of every example under every variant, in one pass, without gradient.

    Args:
        lm: The model.
        examples: What to score; not empty.
        objectives: By task.
        variants: What is compared.
        on_progress: Called with how many requests are scored, and of how many.

    Returns:
        By variant, by example.
    """
    wanted = [objectives[example.task].requests(example) for example in examples]
    requests = [request for each in wanted for request in each]
    done = 0

    def scored(members: Sequence[int], results: object) -> None:
        nonlocal done
        done += len(members)
        on_progress(done, len(requests))

    found = []
    for results in lm.score_variants(requests, variants, on_scored=scored):
        sums = iter(score for score, _ in results)
        parts = [torch.tensor([next(sums) for _ in each], dtype=torch.float64) for each in wanted]
        pairs = zip(examples, parts, strict=True)
        found.append([objectives[example.task].outcome(example, part) for example, part in pairs])
    return found


def unseen_examples(boosters: Sequence[Booster], tasks: Sequence[TaskExamples]) -> list[Example]:
    """The development examples that none of some boosters was trained on.

    Raises:
        TrainingError: The training documents of one are not known.
    """
    for booster in boosters:
        if missing := booster.provenance.unlisted:
            raise TrainingError(
                f"the list of the booster's {missing} training documents is missing "
                "(NAME.safetensors.documents.txt), so development documents cannot be told apart from them"
            )
    trained = {digest for booster in boosters for digest in booster.provenance.hashes}
    return [
        example
        for task in tasks
        for example in task.development
        if trained.isdisjoint(possible_hashes({}, example.question))
    ]


def ranking_scores(
    lm: SteeredLM,
    variants: Sequence[Variant],
    tasks: Sequence[TaskExamples],
    examples: Sequence[Example],
    choice_norm: ChoiceNorm = "none",
) -> list[Score]:
    """The ranking loss of each variant on development examples, in one pass.

    Args:
        lm: The model.
        variants: What is compared.
        tasks: Those of the examples.
        examples: What to score.
        choice_norm: How choices are ranked.

    Raises:
        TrainingError: There are no examples.
    """
    if not examples:
        raise TrainingError("nothing can be chosen without development documents; set some aside")
    objectives = ranking_objectives(tasks, choice_norm)
    weights = [1.0] * len(examples)
    return [mean_score(each, weights, RANKING_LOSS) for each in outcomes(lm, examples, objectives, variants)]
