"""llama.cpp in this process: a GGUF file loaded, tokens read, control vectors set.

Knows the C interface of llama.cpp by way of llama-cpp-python.
Its pointers end here and in `llama_vocabulary.py`. Knows no requests, no boosters and nothing of why tokens are read.
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aft_harness.engine.llama_library import checked_file, complaint, heard, library
from aft_harness.engine.llama_vocabulary import Vocabulary
from aft_harness.errors import ModelError

_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20}
CACHE_TYPES = tuple(_TYPES)
"""What llama.cpp keeps keys and values in."""
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
SEQUENCES = 128
"""That a context holds beside each other."""

_OUTPUTS = 2**26  # numbers of the logits of one decode
_CELLS = 256  # llama.cpp rounds the size of a cache up to a multiple
_ALL_LAYERS = -1
_QUANTISED, _BLOCK = ("q", "iq"), 32  # the types of caches that are, and numbers of one of their blocks


@dataclass(frozen=True)
class LlamaSettings:
    """How a file is run.

    Attributes:
        n_threads: Of the CPU.
        n_gpu_layers: Layers on a GPU; -1 for all, None for all if this build of llama.cpp has a GPU.
        flash_attn: `auto`, `on` or `off`; None means `auto` on a GPU and where values are quantised, which llama.cpp
            cannot do without, and `off` otherwise: on a CPU it reads queries in float16.
        type_k: What keys are kept in; None means f32 for a file in float32, and f16 otherwise.
        type_v: The same for values.
        n_batch: Tokens that go through the model together.
        repack: Whether llama.cpp may lay weights out anew for this CPU; None means yes, unless it was built for AMX,
            where some releases crash on that.
    """

    n_threads: int
    n_gpu_layers: int | None = None
    flash_attn: str | None = None
    type_k: str | None = None
    type_v: str | None = None
    n_batch: int = 256
    repack: bool | None = None


class Llama:
    """A GGUF file that llama.cpp has loaded, and one context of it.

    The context is made when something is read, as large as it has to be, and made anew when more is needed.

    Attributes:
        path: The file.
        settings: How it runs.
        width: Of the residual stream.
        layers: Number of decoder layers.
        vocabulary: Makes texts tokens.
        vocabulary_size: Number of tokens.
        trained_length: Positions that the model was trained on.
        parameters: Number of weights.
        weights: What llama.cpp calls the type of the weights, such as `Q4_K - Medium`.
        type_k: What keys are kept in.
        type_v: What values are kept in.
        on_gpu: Whether layers run on a GPU.
        flash_attn: `auto`, `on` or `off`.
        repack: Whether llama.cpp may lay weights out anew.
    """

    _context: Any

    def __init__(self, path: str | os.PathLike[str], settings: LlamaSettings) -> None:
        """Loads the file.

        Raises:
            ModelError: llama.cpp does not load it, or cannot run it so.
        """
        self.path, self.settings = checked_file(path), settings
        self._lib = lib = library()
        self._context, self._cells, self._owner = None, 0, True
        parameters = lib.llama_model_default_params()
        offloads = bool(lib.llama_supports_gpu_offload())
        layers = settings.n_gpu_layers
        if layers and not offloads:
            raise ModelError(
                f"n_gpu_layers={layers}: this build of llama-cpp-python has no GPU backend; see its installation notes "
                "(CMAKE_ARGS), or leave n_gpu_layers out"
            )
        parameters.n_gpu_layers = (_ALL_LAYERS if offloads else 0) if layers is None else layers
        self.on_gpu = parameters.n_gpu_layers != 0
        self.repack = settings.repack if settings.repack is not None else b"AMX" not in lib.llama_print_system_info()
        parameters.use_extra_bufts = self.repack
        heard()
        self._model = lib.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._model:
            raise ModelError(f"{self.path}: llama-cpp-python {self.version} does not load it: {complaint()}")
        self.vocabulary = Vocabulary(lib, self._model)
        self.width, self.layers = int(lib.llama_model_n_embd(self._model)), int(lib.llama_model_n_layer(self._model))
        self.vocabulary_size = self.vocabulary.size
        self.trained_length = int(lib.llama_model_n_ctx_train(self._model))
        self.parameters = int(lib.llama_model_n_params(self._model))
        name = lib.llama_ftype_name(lib.llama_model_ftype(self._model)) or b"unknown"
        self.weights = name.decode().removeprefix("all ")
        if lib.llama_model_has_encoder(self._model) or not self.vocabulary_size:
            raise ModelError(f"{self.path}: is not a causal language model")
        default = "f32" if self.weights == "F32" else "f16"
        self.type_k, self.type_v = settings.type_k or default, settings.type_v or default
        self._check_cache_types()
        quantised = self.type_v.startswith(_QUANTISED)
        self.flash_attn = settings.flash_attn or ("auto" if self.on_gpu or quantised else "off")
        self._vectors: NDArray[np.float32] | None = None

    def _check_cache_types(self) -> None:
        """Refuses what llama.cpp would end the process for.

        Raises:
            ModelError: A quantised type for heads that are not made of whole blocks.
        """
        architecture = self.metadata("general.architecture")
        heads = int(self._lib.llama_model_n_head(self._model)) or 1
        for name, key, kind in (("type_k", "key", self.type_k), ("type_v", "value", self.type_v)):
            size = int(self.metadata(f"{architecture}.attention.{key}_length") or self.width // heads)
            if kind.startswith(_QUANTISED) and size % _BLOCK:
                raise ModelError(
                    f"{name}={kind}: this model's heads have a width of {size}, and quantised types need a multiple of "
                    f"{_BLOCK}; use f16"
                )

    @property
    def version(self) -> str:
        """Of llama.cpp's Python package."""
        return str(self._lib.__version__)

    @property
    def recurrent(self) -> bool:
        """Whether the model keeps a state instead of, or beside, keys and values: such cannot go back to a prefix."""
        return bool(self._lib.llama_model_is_recurrent(self._model) or self._lib.llama_model_is_hybrid(self._model))

    def sibling(self, settings: LlamaSettings) -> Llama:
        """The same loaded file with a context of its own; to be closed before this object is."""
        other = copy.copy(self)
        other.settings, other._owner, other._context, other._cells = settings, False, None, 0
        other.type_k, other.type_v = settings.type_k or self.type_k, settings.type_v or self.type_v
        return other

    @property
    def most_sequences(self) -> int:
        """Sequences beside each other."""
        return SEQUENCES

    @property
    def most_tokens(self) -> int:
        """Tokens of one decode."""
        return self.settings.n_batch

    @property
    def most_outputs(self) -> int:
        """Positions of one decode whose logits are held at a time."""
        return max(1, min(self.settings.n_batch, _OUTPUTS // self.vocabulary_size))

    def reserve(self, cells: int) -> None:
        """Makes room for so many positions; all that was read is forgotten where there was less.

        Raises:
            ModelError: There is not enough memory, or llama.cpp does not take the settings.
        """
        if cells <= self._cells:
            return
        lib = self._lib
        self.close_context()
        settings = lib.llama_context_default_params()
        cells = -(-cells // _CELLS) * _CELLS
        settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, self.settings.n_batch, self.settings.n_batch
        settings.n_seq_max, settings.kv_unified, settings.swa_full = SEQUENCES, True, True
        settings.n_threads = settings.n_threads_batch = self.settings.n_threads
        settings.flash_attn_type = FLASH_ATTENTION[self.flash_attn]
        settings.type_k, settings.type_v = _TYPES[self.type_k], _TYPES[self.type_v]
        settings.no_perf = True
        heard()
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            how = f"n_ctx {cells}, type_k {self.type_k}, type_v {self.type_v}, flash_attn {self.flash_attn}"
            raise ModelError(f"{self.path}: llama.cpp cannot run it with {how}: {complaint()}")
        self._cells = cells
        self._memory = lib.llama_get_memory(self._context)
        self._set_vectors()

    def close_context(self) -> None:
        """Gives the memory of what was read back."""
        if self._context:
            self._lib.llama_free(self._context)
        self._context, self._cells = None, 0

    def close(self) -> None:
        """Gives all memory back; nothing can be read any more."""
        self.close_context()
        if self._model and self._owner:
            self._lib.llama_model_free(self._model)
        self._model = None

    def __del__(self) -> None:
        """See `close`; at the end of the interpreter the library may be gone already."""
        if getattr(self, "_model", None) and getattr(self._lib, "llama_model_free", None):
            self.close()

    def steer(self, vectors: Mapping[int, Tensor] | None) -> None:
        """Sets what is added to the outputs of layers from now on, and forgets what was read.

        Args:
            vectors: [hidden], by the 0-based layer, which is not 0; None for the unchanged model.

        Raises:
            ModelError: llama.cpp does not take them.
        """
        total = None
        if vectors:
            total = np.zeros((self.layers - 1, self.width), dtype=np.float32)  # from layer 1 on
            for layer, vector in vectors.items():
                total[layer - 1] = vector.detach().cpu().numpy()
        self._vectors = total
        if self._context:
            self.forget_all()
            self._set_vectors()

    def _set_vectors(self) -> None:
        data, size = None, 0
        if self._vectors is not None:
            data, size = self._vectors.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), self._vectors.size
        if self._lib.llama_set_adapter_cvec(self._context, data, size, self.width, 1, self.layers):
            raise ModelError(f"{self.path}: llama.cpp does not take the control vector: {complaint()}")

    def forget_all(self) -> None:
        """Forgets what was read."""
        if self._context:
            self._lib.llama_memory_clear(self._memory, False)

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Forgets the positions of a sequence from `start` on; False where this kind of model cannot."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def share(self, source: int, target: int, length: int) -> None:
        """Lets a sequence begin with the first positions of another; nothing is copied."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        first: NDArray[np.int32],
        count: NDArray[np.int32],
        wanted: NDArray[np.bool_],
    ) -> Tensor:
        """Reads tokens; see `decoding.Decode` for what the arguments mean.

        At most `settings.n_batch` tokens, of which `most_outputs` are wanted.

        Returns:
            The logits of the wanted positions, float32 [wanted, vocabulary], valid until the next call.

        Raises:
            ModelError: llama.cpp fails.
        """
        size = len(tokens)
        # Sequences of a token follow each other: each list of them is a part of this one.
        numbers = np.arange(SEQUENCES, dtype=np.int32)
        lists = numbers.ctypes.data + first.astype(np.uint64) * numbers.itemsize
        outputs = wanted.astype(np.int8)
        arrays = (np.ascontiguousarray(each, dtype=np.int32) for each in (tokens, positions, count))
        token, position, n_seq = arrays
        batch = self._lib.llama_batch()
        batch.n_tokens = size
        for name, array in (("token", token), ("pos", position), ("n_seq_id", n_seq), ("logits", outputs)):
            kind = dict(batch._fields_)[name]
            setattr(batch, name, ctypes.cast(array.ctypes.data, kind))
        batch.seq_id = ctypes.cast(lists.ctypes.data, dict(batch._fields_)["seq_id"])
        heard()
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise ModelError(f"{self.path}: llama.cpp fails to read {size} tokens (code {code}): {complaint()}")
        rows = int(wanted.sum())
        if not rows:
            return torch.empty(0, self.vocabulary_size)
        pointer = self._lib.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary_size)))

    def metadata(self, key: str) -> str | None:
        """A text of the file's metadata."""
        size = 2**20
        buffer = ctypes.create_string_buffer(size)
        length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
        return buffer.value.decode(errors="replace") if length >= 0 else None
