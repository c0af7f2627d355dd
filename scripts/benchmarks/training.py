"""Training on lettered questions: against the published procedure, and with another kind of attention."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

from machine import peak, training_operations
from material import model
from timing import Measured, Outcome, alternate, median

EPOCHS = 5


def against_published(dtype: str, docs: int, reps: int) -> Outcome:
    """Five epochs on letter-format questions, against the published procedure.

    Ours is the pass that caches hidden states and the epochs; the scores before and after, which the published
    procedure takes separately, are left out on both sides. The difference is the largest one of the epochs' mean
    losses; in half precision both boosters are tried on as many questions that neither has seen.
    """
    lm, reference = model("steered-hf", dtype), model("steered-hf", "float32")
    (task, _), (plain_task, unseen) = _letters(lm, docs), _letters(reference, docs)
    layer = len(lm.engine.layers) // 2
    first, second = alternate(
        lambda: _trained(lm, task, layer), lambda: _published(reference, plain_task.train, layer), reps
    )
    (losses, vector), (plain_losses, plain_vector) = first[0].results, second[0].results
    difference = max(abs(left - right) for left, right in zip(losses, plain_losses, strict=True))
    note = _held_out(reference, unseen, layer, plain_vector, vector) if dtype != "float32" else ""
    needed = training_operations(lm, task.train, layer, EPOCHS)
    seconds = median(first), median(second)
    return Outcome("published, float32", dtype, docs, *seconds, difference, None, needed, note, batch_size=4)


def against_fused_attention(docs: int, reps: int) -> Outcome:
    """Training in bfloat16 with the attention that `Engine.differentiated` takes, against torch's fused one."""
    lm = model("steered-hf", "bfloat16")
    (task, _), layer = _letters(lm, docs), len(lm.engine.layers) // 2

    def fused() -> Measured:
        with mock.patch.object(lm.engine, "differentiated", nullcontext):
            return _trained(lm, task, layer)

    first, second = alternate(lambda: _trained(lm, task, layer), fused, reps)
    (losses, _), (fused_losses, _) = first[0].results, second[0].results
    difference = max(abs(left - right) for left, right in zip(losses, fused_losses, strict=True))
    return Outcome("fused attention", "bfloat16", docs, median(first), median(second), difference, batch_size=4)


def _trained(lm: Any, task: Any, layer: int) -> Measured:
    from aft_harness.training.recipe import RECIPES
    from aft_harness.training.train import train

    result = train(lm, [task], replace(RECIPES["original"], layers=layer, epochs=EPOCHS))
    seconds = result.stages["caching"] + result.stages["training"]
    return Measured(seconds, (result.epoch_losses, result.booster.injections[layer].tensors["vector"]))


def _published(lm: Any, examples: Sequence[Any], layer: int) -> Measured:
    """The published procedure, plainly: one example at a time, no caching, the head and the loss at every position."""
    import torch

    start = time.perf_counter()
    network = lm.model
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    vector = torch.zeros(network.config.hidden_size, requires_grad=True)
    hook = network.get_decoder().layers[layer].register_forward_hook(lambda module, args, output: output + vector)
    optimiser = torch.optim.Adam([vector], lr=1e-2)
    losses = []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(epoch)).tolist()
        total = 0.0
        for place, index in enumerate(order):
            request = examples[index].requests[examples[index].gold[0]]
            tokens = torch.tensor([[*request.context, *request.continuation]])
            labels = tokens.clone()
            labels[:, : len(request.context)] = -100
            loss = network(tokens, labels=labels).loss
            (loss / 4).backward()
            total += loss.item()
            if place % 4 == 3 or place == len(order) - 1:
                optimiser.step()
                optimiser.zero_grad()
        losses.append(total / len(order))
    hook.remove()
    return Measured(time.perf_counter() - start, (losses, vector.detach()))


def _held_out(lm: Any, examples: Sequence[Any], layer: int, plain: Any, ours: Any) -> str:
    """Right answers with either vector on examples that neither was trained on, paired."""
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.variant import Variant
    from aft_harness.results.statistics import compare
    from aft_harness.training.development import outcomes
    from aft_harness.training.objective import TaskObjective

    vectors = {"published": plain, "ours": ours}
    variants = [Variant(name, Booster.static({layer: vector})) for name, vector in vectors.items()]
    objectives = {examples[0].task: TaskObjective("choice")}
    right = [[bool(outcome.right) for outcome in each] for each in outcomes(lm, examples, objectives, variants)]
    paired = compare(*right)
    return (
        f"{paired.n} unseen questions: published {paired.baseline:.1%}, ours {paired.steered:.1%}, "
        f"exact McNemar p = {paired.p_value:.2g}; matrix products in bfloat16 are "
        f"{peak('bfloat16') / peak('float32'):.1f} times as fast as in float32"
    )


def _letters(lm: Any, docs: int) -> tuple[Any, list[Any]]:
    """HellaSwag rows as lettered questions whose answer is one letter: training examples, and as many unseen ones."""
    from aft_harness.harness.examples import Example, TaskExamples
    from aft_harness.harness.tasks import Tasks

    examples = []
    for doc in Tasks().leaves(["hellaswag"])["hellaswag"].validation_docs().select(range(2 * docs)):
        options = "\n".join(f"{letter}. {ending}" for letter, ending in zip("ABCD", doc["endings"], strict=True))
        prompt = f"Complete the sentence:\n{doc['ctx']}\n\n{options}\n\nThe best answer is:"
        requests = tuple(lm.encode(prompt, f" {letter}") for letter in "ABCD")
        examples.append(Example("letters", doc["ctx"], doc["ctx"], requests, (int(doc["label"]),), tuple("ABCD")))
    train, unseen = examples[:docs], examples[docs:]
    return TaskExamples("letters", "1.0", "choice", f"validation[0:{docs}]", 0, train, []), unseen
