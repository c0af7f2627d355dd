"""Activation Fine-Tuning with lm-eval: train, evaluate and share small steering vectors of frozen language models.

    import aft_harness as aft
    result = aft.train("HuggingFaceTB/SmolLM2-135M-Instruct", tasks="arc_easy")
    result.booster.save("arc.safetensors")

`__all__` lists the public interface, which docs/api.md documents. Names are imported on first use, so importing the
package takes milliseconds.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers take for true; typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from aft_harness.api.evaluation import EvaluationResult, evaluate, forecast_evaluation, transfer
    from aft_harness.api.training import forecast, train
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.mixing import mix
    from aft_harness.boosters.variant import Variant
    from aft_harness.engine.steering import Steering
    from aft_harness.errors import AftError
    from aft_harness.harness.blueprint import Forecast
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.harness.opening import opened
    from aft_harness.harness.selection import PairSelection, PromptFormat, TaskSelection
    from aft_harness.publish.export.registry import export
    from aft_harness.publish.export.target import Exported
    from aft_harness.publish.library.pull import Pulled, pull
    from aft_harness.publish.library.verdicts import Verdict
    from aft_harness.publish.library.verification import verify
    from aft_harness.publish.report.page import report
    from aft_harness.training.recipe import Settings
    from aft_harness.training.result import TrainingResult

_HOME = {
    "AftError": "errors",
    "Booster": "publish.library.push",  # which gives boosters their `applied_to` and `push_to_hub`
    "EvaluationResult": "api.evaluation",
    "Exported": "publish.export.target",
    "Forecast": "harness.blueprint",
    "PairSelection": "harness.selection",
    "PromptFormat": "harness.selection",
    "Pulled": "publish.library.pull",
    "Settings": "training.recipe",
    "SteeredHFLM": "harness.model",
    "Steering": "engine.steering",
    "TaskSelection": "harness.selection",
    "TrainingResult": "training.result",
    "Variant": "boosters.variant",
    "Verdict": "publish.library.verdicts",
    "evaluate": "api.evaluation",
    "export": "publish.export.registry",
    "forecast": "api.training",
    "forecast_evaluation": "api.evaluation",
    "mix": "boosters.mixing",
    "opened": "harness.opening",
    "pull": "publish.library.pull",
    "report": "publish.report.page",
    "train": "api.training",
    "transfer": "api.evaluation",
    "verify": "publish.library.verification",
}

__all__ = [
    "AftError",
    "Booster",
    "EvaluationResult",
    "Exported",
    "Forecast",
    "PairSelection",
    "PromptFormat",
    "Pulled",
    "Settings",
    "SteeredHFLM",
    "Steering",
    "TaskSelection",
    "TrainingResult",
    "Variant",
    "Verdict",
    "__version__",
    "evaluate",
    "export",
    "forecast",
    "forecast_evaluation",
    "mix",
    "opened",
    "pull",
    "report",
    "train",
    "transfer",
    "verify",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
