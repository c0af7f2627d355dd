"""Loading a model through lm-eval's `hf`, with one clear line for what bad input makes it raise.

Knows the errors of transformers and the hub. Knows nothing of boosters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import transformers

from aft_harness.engine.skeleton import FAILURES
from aft_harness.errors import AftError, ModelError, ParseError
from aft_harness.harness import preflight
from aft_harness.harness.notices import without_notices

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster


def parse_arguments(text: str) -> dict[str, Any]:
    """Reads `key=value,key=value` as lm-eval's `--model_args` does.

    Raises:
        ParseError: A part without `=`.
    """
    from lm_eval.utils import simple_parse_args_string

    if wrong := [part for part in text.split(",") if part and "=" not in part]:
        raise ParseError(f"{wrong[0]!r}: expected key=value pairs separated by commas")
    return dict(simple_parse_args_string(text))


def load_as_hf(
    load: Callable[..., None],
    pretrained: str | transformers.PreTrainedModel,
    booster: Booster | None = None,
    **kwargs: Any,
) -> None:
    """Runs `HFLM.__init__` and turns what bad input makes it raise into one clear line.

    Args:
        load: That method.
        pretrained: Hub id, folder or loaded model.
        booster: What the model will be steered with; one that cannot fit is refused before weights are loaded.
        **kwargs: Further arguments of `hf`.

    Raises:
        AftError: The model cannot be loaded, or an argument not be understood.
    """
    if isinstance(pretrained, str):
        # The stock command line says cuda:0 unless it is told otherwise, and without a GPU `hf` takes the CPU.
        unsaid = str(kwargs.get("device")).startswith("cuda:")
        preflight.check(pretrained, {**kwargs, **({"device": None} if unsaid else {})}, booster)
    try:
        with nullcontext() if isinstance(pretrained, str) else without_notices():
            load(pretrained=pretrained, **kwargs)
    except AftError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{shown(pretrained)} does not fit on {kwargs.get('device')}; try dtype=bfloat16") from error
    except FAILURES as error:
        reason = _explain(error)
        raise ModelError(f"{shown(pretrained)} cannot be loaded as a causal language model: {reason}") from error


def shown(pretrained: object) -> str:
    """What messages call a model."""
    return pretrained if isinstance(pretrained, str) else type(pretrained).__name__


def _explain(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if text.startswith("Unrecognized configuration class"):
        return f"its configuration {text.split('<class ')[-1].split('>')[0]} has no causal language model"
    if "is not a local folder and is not a valid model identifier" in text or "Can't load" in text:
        return "no such folder or hub id (or no network connection and no cached copy)"
    if "couldn't connect" in text or "offline" in text.lower():
        return "not a local folder, not in the hub's cache, and the hub cannot be reached"
    sentence = text.split(". ")[0][:300]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__
