"""`aft export peft`: an adapter folder that `PeftModel.from_pretrained` loads, the booster in it as biases.

Knows PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`, and writes them without PEFT. Which
linear layer's bias is exact is measured by `site.py`.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_harness.errors import ExportError
from aft_harness.publish.export.target import MODEL, REVISION, Exported, Option, Order, Target, check_revision

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."  # PEFT wraps the model twice
_SETTINGS: dict[str, dict[str, Any]] = {
    "beft": {"peft_type": "BEFT"},
    "lora": {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "lora_dropout": 0.0, "lora_bias": True, "bias": "none"},
}
_LOADED = {"beft": "beft_bias.default", "lora": "lora_B.default.bias"}
"""What a model calls the biases once they are loaded."""

_NEEDS = {"beft": "0.20", "lora": "0.14"}
"""The first version of PEFT that knows each form."""


def write(order: Order, *, model: str, form: str, revision: str | None) -> Exported:
    """Writes the folder; see `TARGET`."""
    from safetensors.torch import save

    from aft_harness.engine.decoder import decoder_layers
    from aft_harness.engine.skeleton import read_config, skeleton
    from aft_harness.engine.steering import Steering
    from aft_harness.publish.export.site import find_site

    check_revision(model, revision)
    vectors = order.vectors
    config = read_config(model, revision=revision)
    kind = skeleton(config)
    Steering(kind, order.booster)  # refuses a booster of another width or depth
    site = find_site(config, list(vectors))
    if form == "beft" and not site.is_linear:
        raise ExportError(
            f"the adapter form beft takes a torch.nn.Linear, which {site.name} of {config.model_type} is not; use "
            "--form lora"
        )
    layers = decoder_layers(kind)
    place = next(name for name, module in kind.named_modules() if module is layers)
    biases = {f"{place}.{layer}.{site.name}": vector / site.factor for layer, vector in vectors.items()}
    inputs = kind.get_parameter(f"{next(iter(biases))}.weight").numel() // order.booster.hidden_size
    tensors = {
        f"{_PREFIX}{module}.{name}": tensor
        for module, bias in biases.items()
        for name, tensor in _tensors(form, bias, inputs).items()
    }
    # An expression that fits these modules' whole names, and no others whose names end alike.
    numbers = "|".join(map(str, vectors))
    settings = {
        "base_model_name_or_path": None if Path(model).exists() else model,
        "revision": revision,
        "inference_mode": True,
        "target_modules": rf"{re.escape(place)}\.({numbers})\.{re.escape(site.name)}",
        "task_type": "CAUSAL_LM",
        **_SETTINGS[form],
    }
    order.place.mkdir()
    (order.place / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (order.place / "adapter_config.json").write_text(text, encoding="utf-8")
    count = len(vectors)
    pinned = "" if revision is None else f", revision={revision!r}"
    arguments = ",".join(
        [f"pretrained={model}", *([f"revision={revision}"] if revision else []), f"peft={order.output}"]
    )
    return Exported(
        order.output,
        use="from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({model!r}{pinned})\n"
        f"model = PeftModel.from_pretrained(model, {str(order.output)!r})\n"
        "or\n"
        f"lm_eval --model hf --model_args {shlex.quote(arguments)} --tasks TASKS",
        check=f"print(sum(name.endswith('{_LOADED[form]}') for name in model.state_dict()))  # {count}",
        notes=(f"needs PEFT {_NEEDS[form]} or newer",),
        record={"form": form, "bias_of": site.name},
    )


def _tensors(form: str, bias: Tensor, inputs: int) -> dict[str, Tensor]:
    """The tensors of one linear layer by what PEFT calls them, its bias being [outputs]."""
    if form == "beft":
        return {"beft_bias": bias[None].contiguous()}
    return {
        "lora_A.weight": bias.new_zeros(1, inputs),
        "lora_B.weight": bias.new_zeros(len(bias), 1),
        "lora_B.bias": bias.contiguous(),
    }


TARGET = Target(
    name="peft",
    summary="An adapter folder for PEFT.",
    description="The vectors become biases: a BEFT adapter, which is nothing but biases, or a LoRA of rank 1 whose "
    "matrices are zero, for releases that do not know BEFT. Neither can be merged into a model that has no biases, "
    "which `aft export checkpoint` gives it. Kinds of models that normalise what their MLP gives are refused, which is "
    "measured on a small random model of the same kind.",
    write=write,
    shape="folder",
    options=(
        MODEL,
        REVISION,
        Option("form", "Which kind of adapter.", choices=("beft", "lora"), default="beft"),
    ),
)
