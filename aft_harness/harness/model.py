"""`steered-hf`: lm-eval's Hugging Face model type with a booster in its residual stream.

Knows lm-eval's `HFLM`. What a booster is and how it is applied stands in `booster.py` and `steering.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Self

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

import aft_harness
from aft_harness.boosters import documents, references
from aft_harness.boosters.booster import Booster, base_model_key
from aft_harness.engine.generation import TextsDone
from aft_harness.engine.identity import BaseModel, identify
from aft_harness.engine.scoring import Engine, OnScored, Request
from aft_harness.engine.steering import Steering, check_causal, decoder_layers
from aft_harness.errors import AftError, CacheError, ModelError, ReferenceSyntaxError, TaskError

logger = logging.getLogger(__name__)

CACHE_KEY = "aft_harness:written_by"
LETTER_TASK = re.compile(r"aft_\w+_letter")
"""Names of the tasks whose answers are letters."""


class SteeredHFLM(HFLM):
    """lm-eval's `hf` with the arguments `vector=` and `scale=`; without `vector=` it is the paired baseline.

    The booster is attached for the duration of each forward pass and of each generation, so that a model object that
    the caller passed in is left as it was.
    """

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel,
        vector: references.VectorSpec | None = None,
        scale: float = 1.0,
        layers_path: str | None = None,
        packing: bool | str = True,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads the model as `hf` does, then checks that the booster fits it.

        Args:
            pretrained: Hub id, folder, or a loaded model.
            vector: Which booster: see `references.py` for the grammar.
            scale: Factor on the whole of `vector`.
            layers_path: Dotted name of the decoder layers, for models whose layers are not found.
            packing: `off` scores each request in a row of its own, by lm-eval's own code.
            device: As for `hf`; when absent, a GPU if there is one.
            **kwargs: Every other argument of `hf`.

        Raises:
            AftError: The booster or the model cannot be used; one line says why.
        """
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ReferenceSyntaxError(f"scale={scale!r} is not a number")
        # Before the model: a wrong booster should not cost the load of gigabytes.
        self.booster: Booster | None = None
        strength = 1.0
        if vector is not None:
            self.booster, strength = references.load(vector)
        self.strength = strength * scale
        self.layers_path = layers_path
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _load_as_hf(super().__init__, pretrained, device=device, **kwargs)
        if self.backend != "causal":
            raise ModelError(f"{_shown(pretrained)} is not a causal language model but {self.backend}")
        check_causal(self.model)
        self.engine = Engine(
            self.model,
            decoder_layers(self.model, layers_path),
            torch.device(self.device),
            packed=_switch("packing", packing),
        )
        self._warned: set[str] = set()
        self._steering = self.steering_for(self.booster, self.strength)

    def steering_for(self, booster: Booster | None, strength: float = 1.0) -> Steering | None:
        """How this model is steered by a booster, checked to fit; None for the baseline.

        Warns, once a booster, when it was made for another model.

        Raises:
            BoosterError: The booster does not fit the model.
        """
        if booster is None:
            return None
        steering = Steering(self.model, booster, strength, layers_path=self.layers_path)
        self._warn_of_other_model(booster)
        return steering

    @contextmanager
    def steered_as(self, booster: Booster | None, strength: float = 1.0) -> Iterator[Self]:
        """In this block the model has another booster, or none."""
        before = self.booster, self.strength, self._steering
        self.booster, self.strength, self._steering = booster, strength, self.steering_for(booster, strength)
        try:
            yield self
        finally:
            self.booster, self.strength, self._steering = before

    @cached_property
    def base_model(self) -> BaseModel:
        """Which model this is, independent of where it lies."""
        return identify(self.model, self.pretrained if isinstance(self.pretrained, str) else None)

    def encode(self, context: str, continuation: str) -> Request:
        """Tokenises a request as lm-eval's `loglikelihood` does, left-truncated to the model's length.

        Raises:
            ModelError: The continuation has no tokens, or more than the model has positions.
        """
        if context:
            first, second = self._encode_pair(context, continuation)
        else:
            first, second = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if second[:1] == first:
                first, second = second[:1], second[1:]
        return self._request(first, second)

    def check_letters(self, task: str, requests: Sequence[Request]) -> None:
        """Refuses a letter-format task where the tokenizer begins two of its letters with the same token.

        Raises:
            TaskError: It does; the published procedure tells letters apart by their first token.
        """
        if LETTER_TASK.fullmatch(task) and len({one.continuation[0] for one in requests}) < len(requests):
            raise TaskError(
                f"task {task}: this tokenizer begins several of the answers' letters with the same token, so that they "
                f"cannot be told apart by it; use the task's cloze form"
            )

    def examine(self, requests: Sequence[Instance]) -> None:
        """What there is to say before loglikelihoods of documents: see the two methods it calls.

        Raises:
            TaskError: See `check_letters`.
        """
        self.warn_of_training_documents(requests)
        letters: dict[str, dict[str, Request]] = defaultdict(dict)
        for request in requests:
            task, (context, letter) = str(request.task_name), request.args
            if LETTER_TASK.fullmatch(task) and letter not in letters[task]:
                letters[task][letter] = self.encode(context, letter)
        for task, encoded in letters.items():
            self.check_letters(task, list(encoded.values()))

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        if not context or not 0 < len(continuation) <= self.max_length:
            raise ModelError(
                f"a continuation of {len(continuation)} tokens after {len(context)} cannot be scored by a model of "
                f"{self.max_length} positions"
            )
        request = Request(tuple(context), tuple(continuation))
        kept = request.truncated(self.max_length)
        if kept is not request:
            logger.warning("a request of %d tokens was cut from the left", len(request.context + request.continuation))
        return kept

    def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._steering or nullcontext():
            return super()._model_call(*args, **kwargs)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """As `hf`, but a text ends where its own end has come, see `TextsDone`."""
        # The rule of lm-eval: a temperature of 0 is greedy, and then transformers wants none.
        if settings.setdefault("temperature", 0.0) == 0.0 and settings.get("do_sample") is not True:
            settings["do_sample"] = False
            del settings["temperature"]
        done = TextsDone(self.tokenizer, self.tok_decode, stop, context.shape[1])
        model: Any = self.model
        with self._steering or nullcontext(), self._autocast():
            return model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=transformers.StoppingCriteriaList([done]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **settings,
            )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Scores tokenised requests in packed rows; models that do not take them go through lm-eval's own code."""
        if not requests or not self.engine.packed:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        encoded = [self._request(context, continuation) for _, context, continuation in requests]
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")

        def record(members: Sequence[int], results: list[list[tuple[float, bool]]]) -> None:
            for member, result in zip(members, results[0], strict=True):
                if (text := requests[member][0]) is not None:  # rolling windows are cached by their caller
                    self.cache_hook.add_partial("loglikelihood", text, result)
            bar.update(len(members))

        with bar:
            (results,) = self.score_variants(encoded, [self._steering], on_scored=record, rows_a_pass=override_bs)
        return results

    def score_variants(
        self,
        requests: Sequence[Request],
        variants: Sequence[Steering | None],
        *,
        on_scored: OnScored = lambda members, results: None,
        rows_a_pass: int | None = None,
        known: Collection[int] = (),
    ) -> list[list[tuple[float, bool]]]:
        """Scores requests under several steerings at once, within the memory that the batch size stands for.

        Args:
            requests: From `encode`.
            variants: From `steering_for`; whatever booster this model has itself is not in force.
            on_scored: See `Engine.loglikelihoods`.
            rows_a_pass: What `--batch_size auto` would find, where the caller knows it.
            known: See `Engine.loglikelihoods`.

        Returns:
            By variant, by request: loglikelihood, and whether the continuation is the greedy one.
        """
        longest = max(requests, key=lambda request: len(request.inputs))
        if self.batch_size != "auto":
            rows_a_pass = int(self.batch_size)
        elif rows_a_pass is None:
            rows_a_pass = int(self._detect_batch_size([("", list(longest.context), list(longest.continuation))]))
        with self._autocast():
            return self.engine.loglikelihoods(
                requests,
                len(longest.inputs) * rows_a_pass,
                variants=variants,
                softmax_dtype=self.softmax_dtype,
                on_scored=on_scored,
                known=known,
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As `hf`, and warns when the booster was trained on some of the documents."""
        self.examine(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As `hf`, and warns when the booster was trained on some of the documents."""
        self.warn_of_training_documents(requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """What goes into the results file: lm-eval's own entries, and which booster ran."""
        return {**super().get_model_info(), "aft": self.variant()}

    def variant(self) -> dict[str, Any]:
        """The booster and strength under evaluation, with the base model; JSON-compatible."""
        described: dict[str, Any] = {
            "version": aft_harness.__version__,
            "base_model": self.base_model.to_json(),
            "device": self.device.type,
        }
        if self.booster is None:
            return {**described, "booster_sha256": None}
        provenance = self.booster.provenance
        return {
            **described,
            "booster_sha256": self.booster.sha256,
            "layers": list(self.booster.layers),
            "strength": self.strength,
            "method": provenance.get("method"),
            "objective": provenance.get("objective"),
            "trained_on": [task.get("task") for task in provenance.get("tasks", [])],
            "trained_n": sum(task.get("n_train", 0) for task in provenance.get("tasks", [])),
            "seed": provenance.get("seed"),
            "booster_parameters": self.booster.parameters,
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Accepts a `--use_cache` database only if this very model and booster wrote it.

        lm-eval's keys hold the request and not the model, so that a baseline's answers would pass for a booster's.

        Raises:
            CacheError: Another model or booster wrote the database.
        """
        super().set_cache_hook(cache_hook)
        database = cache_hook.dbdict
        if database is None:
            return
        ours = self.cache_identity()
        written_by = database.get(CACHE_KEY)
        if written_by is None and len(database):
            raise CacheError(
                f"--use_cache {database.filename}: was not written by steered-hf, so its answers may be another "
                "model's; give a new path"
            )
        if written_by not in (None, ours):
            raise CacheError(
                f"--use_cache {database.filename}: was written by {_cache_label(written_by)}, this is "
                f"{_cache_label(ours)}; give a new path"
            )
        database[CACHE_KEY] = ours
        database.commit()

    def cache_identity(self) -> str:
        """Everything but the request that an answer of this model depends on, as JSON."""
        settings = {
            name: str(getattr(self, name, None))
            for name in (
                "add_bos_token",
                "delta",
                "layers_path",
                "max_length",
                "mixed_precision_dtype",
                "peft",
                "prefix_token_id",
                "softmax_dtype",
                "think_end_token",
            )
        }
        return json.dumps(
            {
                "model": self.base_model.fingerprint,
                "name": self.base_model.name,
                "dtype": str(self.model.dtype),
                "booster": self.booster.sha256 if self.booster else None,
                "strength": self.strength if self.booster else None,
                "settings": settings,
            },
            sort_keys=True,
        )

    def _warn_of_other_model(self, booster: Booster) -> None:
        base = booster.provenance.get("base_model")
        if booster.sha256 in self._warned or not isinstance(base, dict) or not self.base_model.differs_from(base):
            return
        self._warned.add(booster.sha256)
        logger.warning(
            "the booster was made for %s, this is %s (%s): expect no gain",
            base_model_key(booster.provenance),
            self.base_model.name,
            self.base_model.fingerprint[:12],
        )

    def warn_of_training_documents(self, requests: Sequence[Instance]) -> None:
        """Logs a warning for each task some of whose documents the present booster was trained on."""
        provenance = self.booster.provenance if self.booster else {}
        trained = documents.recorded_hashes(provenance)
        if missing := documents.unlisted(provenance):
            logger.warning(
                "the list of the booster's %d training documents is missing (NAME.safetensors.documents.txt): whether "
                "the result is held-out cannot be checked",
                missing,
            )
        if not trained:
            return
        seen: dict[str, set[Any]] = defaultdict(set)
        known: dict[str, set[Any]] = defaultdict(set)
        for request in requests:
            if not isinstance(request.doc, dict) or request.doc_id in seen[str(request.task_name)]:
                continue
            seen[str(request.task_name)].add(request.doc_id)
            context = request.args[0] if isinstance(request.args[0], str) else ""
            if not trained.isdisjoint(documents.possible_hashes(request.doc, context)):
                known[str(request.task_name)].add(request.doc_id)
        for task, ids in known.items():
            logger.warning(
                "%d of %d documents of %s are among the booster's training documents: the result is not held-out",
                len(ids),
                len(seen[task]),
                task,
            )


def _switch(name: str, value: bool | str) -> bool:
    if value in (True, "on", "true", "True"):
        return True
    if value in (False, "off", "false", "False"):
        return False
    raise ModelError(f"{name}={value}: expected on or off")


def _load_as_hf(load: Any, pretrained: str | transformers.PreTrainedModel, **kwargs: Any) -> None:
    """Runs `HFLM.__init__` and turns what bad input makes it raise into one clear line."""
    try:
        load(pretrained=pretrained, **kwargs)
    except AftError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{_shown(pretrained)} does not fit on {kwargs.get('device')}; try dtype=bfloat16") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        reason = _explain(error)
        raise ModelError(f"{_shown(pretrained)} cannot be loaded as a causal language model: {reason}") from error


def _explain(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if text.startswith("Unrecognized configuration class"):
        return f"its configuration is {text.split('<class ')[-1].split('>')[0]}, which has no causal form"
    if "is not a local folder and is not a valid model identifier" in text or "Can't load" in text:
        return "no such folder or hub id (or no network, and it is not in the hub's cache)"
    if "couldn't connect" in text or "offline" in text.lower():
        return "it is neither a local folder nor in the hub's cache, and the hub cannot be reached"
    sentence = text.split(". ")[0][:300]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def _shown(pretrained: object) -> str:
    return pretrained if isinstance(pretrained, str) else type(pretrained).__name__


def _cache_label(identity: object) -> str:
    try:
        fields = json.loads(str(identity))
        booster, strength = fields["booster"], fields["strength"]
        return f"{fields['name']} with " + (f"booster {booster[:12]} at {strength}" if booster else "no booster")
    except (ValueError, KeyError, TypeError):
        return "something else"
