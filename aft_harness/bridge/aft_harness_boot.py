"""Tells a stock `lm_eval` about the model types of aft_harness; runs at every start of the interpreter.

lm-eval up to 0.4.13 knows only the models it ships. Later releases discover the entry-point group `lm_eval.models`,
which aft_harness declares too. Until those are what everybody runs, this module is the bridge:

* `aft_harness.pth`, beside this file in site-packages, imports it. That line swallows errors, because an interpreter
  must start whatever happened to this file. From Python 3.18 on, import lines in `.pth` files are ignored (PEP 829);
  by then lm-eval's own discovery is the way in.
* A finder waits for `lm_eval.models`, lets the real loader run, and then adds a string a type to lm-eval's registry:
  a class is imported when somebody asks for it, not before.
* It must wait: `lm_eval.api.registry` imports lm-eval's own models only while the registry is empty, so that a name
  registered early would make `hf` vanish.

Knows the names and the places of the classes. Imports nothing but `sys` until lm-eval is on its way (not even
`__future__`, hence the quoted annotations): what stands here, every Python program in the environment pays for.
To see that it is active: `python -c "import sys; print(sys.meta_path)"`.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TARGETS = {
    "steered-hf": "aft_harness.harness.model:SteeredHFLM",
    "steered-gguf": "aft_harness.harness.gguf:SteeredGgufLM",
    "steered-vllm": "aft_harness.publish.vllm:SteeredVLLM",
}


class ModelsFinder:
    """Finds `lm_eval.models` where it really is, and has `register` called once it is loaded."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the real spec of `lm_eval.models` with a `Registering` loader; None for every other module."""
        if fullname != "lm_eval.models":
            return None
        # The finders before this one were asked already; asking only those after it, two bridges can't call in circles.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = Registering(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class Registering:
    """The real loader, but executing the module ends with `register`."""

    def __init__(self, loader: "Loader") -> None:
        """Wrap a loader."""
        self.loader = loader

    def __getattr__(self, name: str) -> object:
        """Be the real loader in every other respect."""
        return getattr(self.loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Give the module its real loader back, execute it, register."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for name, target in TARGETS.items():
            try:
                register(name, target)
            except Exception as error:  # a failing guest must not take lm-eval down
                import logging

                logging.getLogger(__name__).warning("lm-eval will not know --model %s: %r", name, error)


def register(name: str, target: str) -> None:
    """Add a model type to lm-eval's registry, unless it is there or lm-eval discovers plugins by itself."""
    from lm_eval.api import registry

    if name not in registry.model_registry and not hasattr(registry, "load_plugins"):
        registry.model_registry.register(name, target=target)


def install() -> None:
    """Put the finder in front of the others, once per interpreter however often this file is executed."""
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, ModelsFinder())


install()
