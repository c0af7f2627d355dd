"""Extracts steering directions with repeng or steering-vectors, in an environment that has one of them.

Run by compare.py: `python directions.py repeng|steering-vectors INPUT.json OUTPUT.json`. The input names a
model folder and pairs of texts (the question with its right answer, and with a wrong one); the output holds a
direction for each layer, and the loglikelihoods of some requests as the package itself steers, which compare.py checks
its steering by.
"""

import json
import sys
import time
from pathlib import Path

import older
import torch

LAYERS = range(5, 25)
"""What both steer in the check: the middle of the model, as repeng's own examples do."""


def loglikelihoods(run, requests):
    """Summed loglikelihood of each continuation, one plain row after another."""
    found = []
    with torch.no_grad():
        for context, continuation in requests:
            logits = run(input_ids=torch.tensor([(context + continuation)[:-1]])).logits[0, -len(continuation) :]
            scores = logits.float().log_softmax(-1)
            found.append(float(scores[range(len(continuation)), continuation].sum()))
    return found


def repeng(model, tokenizer, asked):
    """Principal component of the differences, repeng's default."""
    from repeng import ControlModel, ControlVector, DatasetEntry

    controlled = ControlModel(model, list(LAYERS))
    pairs = [DatasetEntry(positive=right, negative=wrong) for right, wrong in asked["pairs"]]
    start = time.perf_counter()
    vector = ControlVector.train(controlled, tokenizer, pairs)
    seconds = time.perf_counter() - start
    controlled.set_control(vector, 1.0)
    check = loglikelihoods(controlled, asked["check"])
    return {int(layer): direction.tolist() for layer, direction in vector.directions.items()}, check, seconds


def steering_vectors(model, tokenizer, asked):
    """Mean difference at the last token, the package's default."""
    from steering_vectors import SteeringVector, train_steering_vector

    start = time.perf_counter()
    vector = train_steering_vector(model, tokenizer, [tuple(pair) for pair in asked["pairs"]])
    seconds = time.perf_counter() - start
    chosen = {layer: part for layer, part in vector.layer_activations.items() if layer in LAYERS}
    with SteeringVector(chosen, vector.layer_type).apply(model, multiplier=1.0):
        check = loglikelihoods(model, asked["check"])
    return {int(layer): part.float().tolist() for layer, part in vector.layer_activations.items()}, check, seconds


def main():
    """Reads, extracts, writes."""
    package, source, target = sys.argv[1:]
    asked = json.loads(Path(source).read_text())
    tokenizer, model = older.tokenizer(asked["model"]), older.model(asked["model"])
    plain = loglikelihoods(model, asked["check"])
    make = {"repeng": repeng, "steering-vectors": steering_vectors}[package]
    directions, check, seconds = make(model, tokenizer, asked)
    result = {"directions": directions, "plain": plain, "check": check, "layers": list(LAYERS), "seconds": seconds}
    Path(target).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
