"""What is checked of each kind of model: one function a column, which raises where something is wrong.

Knows the library as a user does. Knows nothing of which kinds there are, or of the page.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import aft_harness as aft
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.engine.decoder import decoder_layers, hidden_size
from aft_harness.errors import ExportError
from aft_harness.harness.model import SteeredHFLM

TOKENS = torch.tensor([list(range(40, 64)), list(range(100, 124))])
PAIRS = [
    {"prompt": f"Boat {number} is", "chosen": f" boat {number} of ten.", "rejected": " a stone that floats."}
    for number in range(6)
]
CLOSE = 1e-4
"""What logits of float32 may differ by; the booster moves them by much more, which is checked."""


class Subject:
    """A model under examination, with a booster that moves it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        """Finds the model's layers.

        Args:
            model: In float32 and evaluation mode.
            tokenizer: Any.
        """
        self.model: Any = model
        self.tokenizer = tokenizer
        self.layers = decoder_layers(model)
        self.width = hidden_size(model)
        generator = torch.Generator().manual_seed(0)
        some = sorted({1, len(self.layers) - 1})
        self.booster = aft.Booster.static({layer: torch.randn(self.width, generator=generator) for layer in some})

    def logits(self, tokens: torch.Tensor = TOKENS, **kwargs: Any) -> Any:
        """Of texts, without a cache, under whatever steering is in force."""
        with torch.no_grad():
            return self.model(tokens, use_cache=False, **kwargs).logits.float()

    def as_without(self, holds: Callable[[], bool]) -> str:
        """Whether something holds of the steered model; and if not, whether it holds of the model itself."""
        with self.booster.applied_to(self.model):
            if holds():
                return "yes"
        return "only without" if holds() else "not without either"

    def steered(self, booster: Any = None, strength: float = 1.0, **kwargs: Any) -> Any:
        """The logits with a booster."""
        with (booster or self.booster).applied_to(self.model, strength=strength):
            return self.logits(**kwargs)


def layers(subject: Subject) -> str:
    """The decoder layers are found, and each of them runs."""
    ran = set()
    handles = []
    for index, layer in enumerate(subject.layers):
        handles.append(layer.register_forward_hook(lambda *_, index=index: ran.add(index)))
    subject.logits()
    for handle in handles:
        handle.remove()
    assert len(ran) == len(subject.layers) == subject.model.config.get_text_config(decoder=True).num_hidden_layers
    return str(len(ran))


def static(subject: Subject) -> str:
    """A vector moves the logits; strength 0 and a booster that was taken off leave them bit for bit."""
    plain = subject.logits()
    assert float((subject.steered() - plain).abs().max()) > 100 * CLOSE
    assert torch.equal(subject.steered(strength=0.0), plain) and torch.equal(subject.logits(), plain)
    return "yes"


def contextual(subject: Subject) -> str:
    """A fresh contextual injection changes nothing, a learned one does."""
    plain = subject.logits()
    fresh = ContextualInjection.fresh(subject.width, 4, 0)
    assert torch.equal(subject.steered(aft.Booster.of({1: fresh})), plain)
    moved = fresh.with_tensors({name: torch.randn_like(tensor) for name, tensor in fresh.tensors.items()})
    assert float((subject.steered(aft.Booster.of({1: moved})) - plain).abs().max()) > 100 * CLOSE
    return "yes"


def training(subject: Subject) -> str:
    """The default recipe lowers its loss on six pairs of texts."""
    result = aft.train(subject.model, subject.tokenizer, pairs=PAIRS, epochs=6, keep=0.0, limit=6)
    first, last = result.epoch_losses[0], result.epoch_losses[-1]
    assert last < first, f"loss {first:.4g} -> {last:.4g}"
    return f"{100 * (1 - last / first):.0f}%"


def packing(subject: Subject) -> str:
    """Scores of packed rows are those of plain rows; or rows are plain, and one log line says so."""
    texts = ["Boat 7 is", "There are 12 apples in 3 boxes, and there are as many in each of them. So each holds"]
    asked = [(text, end) for text in texts for end in (" boat 7.", " boat 7 of ten.", " four", " five stones.")]
    with _logged() as lines:
        given = SteeredHFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=8)
        found = _scores(given, asked)
        kind = "packed" if given.engine.packed else "plain"
    plain = SteeredHFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=1, packing="off")
    expected = _scores(plain, asked)
    assert max(abs(ours - theirs) for ours, theirs in zip(found, expected, strict=True)) < 10 * CLOSE
    assert kind == "packed" or sum("rows" in line for line in lines) == 1, lines
    return kind


def generation(subject: Subject) -> str:
    """With a cache the steered model writes what it writes without."""
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)

    def same() -> bool:
        cached, plain = (
            subject.model.generate(TOKENS, attention_mask=mask, use_cache=use, **settings) for use in (True, False)
        )
        return torch.equal(cached, plain)

    return subject.as_without(same)


def padding(subject: Subject) -> str:
    """Left- and right-padded texts get the steered logits of the bare text."""
    text = TOKENS[:1]
    zeros, ones = torch.zeros(1, 5, dtype=torch.long), torch.ones_like(text)
    places = torch.cat([zeros, torch.arange(text.shape[1])[None]], 1)
    kwargs = {"position_ids": places} if _takes_positions(subject.model) else {}

    def same() -> bool:
        bare = subject.logits(text)[:, -1]
        right = subject.logits(torch.cat([text, zeros], 1), attention_mask=torch.cat([ones, zeros], 1))
        left = subject.logits(torch.cat([zeros, text], 1), attention_mask=torch.cat([zeros, ones], 1), **kwargs)
        padded = torch.stack([right[:, text.shape[1] - 1], left[:, -1]])
        return float((padded - bare).abs().max()) < CLOSE

    return subject.as_without(same)


def saving(subject: Subject) -> str:
    """A booster that was saved and loaded gives the same logits, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "booster.safetensors"
        subject.booster.save(path)
        assert torch.equal(subject.steered(aft.Booster.load(path)), subject.steered())
    return "yes"


def checkpoint(subject: Subject) -> str:
    """The export to a checkpoint, loaded and compared; or why there is none."""
    return _exported(subject, "checkpoint", verify=True)


def peft(subject: Subject) -> str:
    """The export to an adapter of PEFT, or why there is none."""
    return _exported(subject, "peft", form="lora")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "layers": layers,
    "static": static,
    "contextual": contextual,
    "loss falls by": training,
    "rows": packing,
    "cached text": generation,
    "padding": padding,
    "saved": saving,
    "checkpoint": checkpoint,
    "peft": peft,
}


def _exported(subject: Subject, target: str, **options: Any) -> str:
    from aft_harness.publish.export.registry import export

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subject.model.save_pretrained(base)
        subject.tokenizer.save_pretrained(base)
        try:
            done = export(target, subject.booster, Path(folder) / "out", model=str(base), **options)
        except ExportError as error:
            return f"refused: {str(error).replace(folder, '')}"
    return str(done.record.get("form", "yes")) if target == "checkpoint" else f"bias of {done.record['bias_of']}"


def _scores(lm: SteeredHFLM, asked: list[tuple[str, str]]) -> list[float]:
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(asked)]
    return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def _takes_positions(model: PreTrainedModel) -> bool:
    import inspect

    return "position_ids" in inspect.signature(model.forward).parameters


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collects what the package logs."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("aft_harness"), Collector()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
