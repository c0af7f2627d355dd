"""`aft export checkpoint`: a folder that plain transformers, lm-eval and vLLM load, the booster in it as biases.

Knows what such an export is made of. Which form is exact `forms.py` measures; `overlay.py` writes the files.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from aft_harness.errors import ExportError
from aft_harness.publish.export.target import MODEL, REVISION, Exported, Option, Order, Target, check_revision

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

    from aft_harness.publish.export.base import Base
    from aft_harness.publish.export.biases import Biases
    from aft_harness.publish.export.forms import Form

VERIFIED_BY_DEFAULT = 1_000_000_000
"""Parameters of the base up to which an export is loaded and compared unless `--no-verify` is given."""

# What a configuration says of files and machines rather than of the model, or what belongs to the base's own code.
_NOT_CARRIED = ("_name_or_path", "auto_map", "quantization_config")
_NOT_COMPARED = {*_NOT_CARRIED, "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}


def write(order: Order, *, model: str | Base, full: bool, verify: bool | None, revision: str | None) -> Exported:
    """Writes the folder; see `TARGET`."""
    from aft_harness.engine.skeleton import read_config, skeleton
    from aft_harness.engine.steering import Steering
    from aft_harness.publish.export.base import Base
    from aft_harness.publish.export.biases import biases_of, dtype_of
    from aft_harness.publish.export.forms import fitting_form
    from aft_harness.publish.export.overlay import write_folder

    check_revision(model, revision)
    vectors, base = order.vectors, model if isinstance(model, Base) else Base.of(model, revision)
    config = read_config(base.folder, base.label)
    Steering(skeleton(config), order.booster)  # refuses a booster of another width or depth
    form = fitting_form(config, list(vectors))
    biases = biases_of(base, config, form, vectors)
    written = write_folder(base, order.place, _config_file(base, form), biases.changed, biases.added, full=full)
    _check_config(order.place, form)
    dtype = dtype_of(biases)
    record: dict[str, Any] = {"form": form.name, "bias_of": form.site.name, "dtype": dtype}
    notes = [f"{_size(written.added)} are the folder's own; the base's weights are {' and '.join(written.weights)}"]
    if "symbolic links" in written.weights:
        notes.append("symbolic links need the base where it is; --full copies it")
    if dtype != "float32":
        notes.append(f"the biases are {dtype}, as the base's weights are, and rounded to that")
    if verify or (verify is None and base.parameters <= VERIFIED_BY_DEFAULT):
        from aft_harness.publish.export.verification import verified

        difference, effect = verified(base.folder, order.place, biases.effective)
        record["verified"] = {"largest_difference_of_logits": difference, "largest_change_of_logits": effect}
        notes.append(
            f"loaded and compared in float32: its logits are the steered base's to {difference:.1g}, where the booster "
            f"changes them by up to {effect:.3g}"
        )
    else:
        notes.append("not loaded and compared; --verify does that")
    return _exported(order, biases, tuple(notes), record)


def _exported(order: Order, biases: Biases, notes: tuple[str, ...], record: dict[str, Any]) -> Exported:
    layer = max(biases.values)
    norm = float(biases.values[layer].double().norm())
    return Exported(
        order.output,
        use=f"lm_eval --model hf --model_args {shlex.quote(f'pretrained={order.output}')} --tasks TASKS\n"
        f"vllm serve {shlex.quote(str(order.output))}",
        check=f"from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(order.output)!r})\n"
        f"print(model.get_parameter({biases.parameters[layer]!r}).norm().item())  # {norm:.4g}",
        notes=notes,
        record=record,
    )


def _config_file(base: Base, form: Form) -> dict[str, Any]:
    """The `config.json` of the export: the base's, with as little changed as its form needs."""
    from aft_harness.publish.export.forms import AS_LLAMA, NATIVE

    raw = {name: value for name, value in base.config.items() if name not in _NOT_CARRIED}
    if form.name == NATIVE:
        return raw
    if form.name != AS_LLAMA:
        return {**raw, form.name: True}
    settings = {name: value for name, value in form.config.to_dict().items() if name not in _NOT_CARRIED}
    # Rotary embeddings as the base spells them, which readers of its age understand.
    rope = {"rope_theta", "rope_scaling"} & set(raw)
    if rope:
        settings.pop("rope_parameters", None)
    kept = {name: raw[name] for name in raw if name in settings or name in {*rope, "torch_dtype"}}
    return {
        **settings,
        **kept,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    }


def _check_config(folder: Path, form: Form) -> None:
    """Refuses to write a configuration that is read as another one than was measured."""
    from aft_harness.engine.skeleton import read_config

    read, meant = (_compared(config) for config in (read_config(folder), form.config))
    if differing := sorted(name for name in {*read, *meant} if read.get(name) != meant.get(name)):
        raise ExportError(f"the base's settings cannot be carried over: {', '.join(differing)}")


def _compared(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPARED}


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


TARGET = Target(
    name="checkpoint",
    summary="A Hugging Face folder that transformers, lm_eval and vLLM load without aft_harness.",
    description="The vectors become biases of linear layers, in the dtype of the model's weights. By default "
    "the folder is an overlay: the model's files are linked (copied where that is not possible), and a few megabytes "
    "are added. Files that hold such biases already, as those of Phi, GPT-2, GPT-NeoX and OPT do, are copied. Models "
    "that cannot express the booster exactly are refused; this is measured on a small random model of the same kind.",
    write=write,
    shape="folder",
    options=(
        MODEL,
        REVISION,
        Option("full", "Copy the model's weights, so that the folder needs nothing else.", switch=True, default=False),
        Option(
            "verify",
            "Load the model and the export, and compare their logits in float32.  [default: for models of up to "
            f"{VERIFIED_BY_DEFAULT // 10**9} billion parameters]",
            switch=True,
        ),
    ),
)
