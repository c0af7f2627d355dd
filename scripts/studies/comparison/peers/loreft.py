"""Trains LoReFT with pyreft by the losses of the comparison, in an environment that has pyreft.

Run by compare.py: `python loreft.py INPUT.json OUTPUT.json`. The input holds token ids of training, development
and test requests; the output the settings that were best on the development documents, and the loglikelihoods of the
test requests under them. LoReFT changes the hidden states of the first and last tokens of each prompt at every layer
(Wu et al. 2024, arXiv:2404.03592); rank 4 and five tokens at either end.
"""

import copy
import json
import sys
import time
from pathlib import Path

import older
import pyreft
import torch

RANK, ENDS = 4, 5


def positions(contexts, layers):
    """The positions that are changed: [layers][rows][2 * ENDS]; short prompts name a position more than once."""
    rows = []
    for context in contexts:
        last = len(context) - 1
        first = [min(place, last) for place in range(ENDS)]
        rows.append(first + [max(last - place, 0) for place in reversed(range(ENDS))])
    return [rows] * layers


def scores(reft, requests, layers):
    """Summed loglikelihoods [n] of continuations, differentiable, in one padded batch."""
    sequences = [(context + continuation)[:-1] for context, continuation in requests]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
    where = positions([context for context, _ in requests], layers)
    _, output = reft({"input_ids": ids, "attention_mask": mask}, unit_locations={"sources->base": (None, where)})
    found = []
    for row, (context, continuation) in enumerate(requests):
        start = len(context) - 1
        scored = output.logits[row, start : start + len(continuation)].float().log_softmax(-1)
        found.append(scored[range(len(continuation)), continuation].sum())
    return torch.stack(found)


def loss(reft, examples, asked, layers):
    """Mean loss, `both` or `choice` of `aft_harness.training.objective`, and how many best choices are right."""
    sums = iter(scores(reft, [request for requests, _ in examples for request in requests], layers))
    total, right = 0.0, 0
    for requests, gold in examples:
        ranked = torch.stack([next(sums) for _ in requests])
        total = total - (ranked / asked["temperature"]).log_softmax(0)[gold]
        if asked["objective"] == "both":
            total = total - ranked[gold] / len(requests[gold][1])
        right += int(ranked.argmax()) == gold
    return total / len(examples), right


def trained(model, asked, rate):
    """A model with the interventions that one rate gives, how it does on development documents, and its numbers."""
    count, size = model.config.num_hidden_layers, model.config.hidden_size
    torch.manual_seed(asked["seed"])
    reft = pyreft.get_reft_model(
        model,
        pyreft.ReftConfig(
            representations=[
                {
                    "layer": layer,
                    "component": "block_output",
                    "low_rank_dimension": RANK,
                    "intervention": pyreft.LoreftIntervention(embed_dim=size, low_rank_dimension=RANK),
                }
                for layer in range(count)
            ]
        ),
    )
    start = time.perf_counter()
    parameters = [part for part in reft.parameters() if part.requires_grad]
    steps = asked["epochs"] * -(-len(asked["train"]) // asked["batch_size"])
    adam = torch.optim.Adam(parameters, lr=rate)
    pace = torch.optim.lr_scheduler.LinearLR(adam, start_factor=1.0, end_factor=0.0, total_iters=steps)
    for epoch in range(asked["epochs"]):
        order = torch.randperm(len(asked["train"]), generator=torch.Generator().manual_seed(epoch)).tolist()
        for place in range(0, len(order), asked["batch_size"]):
            if time.perf_counter() - start > asked["budget"]:
                break
            adam.zero_grad()
            batch = [asked["train"][index] for index in order[place : place + asked["batch_size"]]]
            loss(reft, batch, asked, count)[0].backward()
            adam.step()
            pace.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        parts = [asked["development"][place : place + 8] for place in range(0, len(asked["development"]), 8)]
        found = [(*loss(reft, part, asked, count), len(part)) for part in parts]
    size = len(asked["development"])
    measured = {
        "development_loss": sum(float(value) * length for value, _, length in found) / size,
        "development_accuracy": sum(right for _, right, _ in found) / size,
        "seconds": seconds,
    }
    return reft, measured, sum(part.numel() for part in parameters)


def main():
    """Reads, trains, writes."""
    source, target = sys.argv[1:]
    asked = json.loads(Path(source).read_text())
    model = older.model(asked["model"], torch.bfloat16)
    best, tried = None, []
    for rate in asked["rates"]:
        reft, measured, parameters = trained(copy.deepcopy(model), asked, rate)
        tried.append({"rate": rate, **measured})
        print(tried[-1], flush=True)
        if best is None or measured["development_accuracy"] > best[1]["development_accuracy"]:
            best = (reft, measured, parameters)
    assert best is not None
    reft, measured, parameters = best
    results: dict[str, list[float]] = {}
    with torch.no_grad():
        for name, requests in asked["exams"].items():
            results[name] = []
            for place in range(0, len(requests), 32):
                results[name] += scores(reft, requests[place : place + 32], model.config.num_hidden_layers).tolist()
    Path(target).write_text(
        json.dumps({"tried": tried, "seconds": measured["seconds"], "parameters": parameters, "exams": results})
    )


if __name__ == "__main__":
    main()
