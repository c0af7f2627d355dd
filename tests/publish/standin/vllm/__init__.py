"""A stand-in for vLLM where it is not installed: as much of it as lm-eval's `VLLM` asks for, run by transformers.

It loads the folder that it is told to, as anybody would, and scores one prompt after the other. Knows nothing of
aft_harness: that the booster has an effect here, the checkpoint alone must see to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOADED: list[dict[str, Any]] = []
"""What every `LLM` was made of."""


@dataclass
class SamplingParams:
    """What is asked of a prompt."""

    max_tokens: int = 16
    temperature: float = 1.0
    prompt_logprobs: int | None = None
    stop: list[str] = field(default_factory=list)
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


class TokensPrompt(dict[str, Any]):
    """A prompt as tokens."""


class LLM:
    """An engine."""

    def __init__(self, model: str, dtype: str = "auto", max_model_len: int | None = None, **settings: Any) -> None:
        unknown = set(settings) - {
            *("revision", "tokenizer", "tokenizer_mode", "tokenizer_revision", "trust_remote_code", "seed"),
            *("tensor_parallel_size", "max_num_seqs", "quantization", "enable_lora", "max_lora_rank", "enforce_eager"),
        }
        if unknown:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        LOADED.append({"model": model, "dtype": dtype, **settings})
        self.network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(settings.get("tokenizer") or model)
        longest = max_model_len or self.network.config.max_position_embeddings
        config = SimpleNamespace(max_model_len=longest, dtype=self.network.dtype)
        self.llm_engine = SimpleNamespace(model_config=config)

    @torch.no_grad()
    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool = True, lora_request: Any = None) -> Any:
        """What the engine gives for each prompt."""
        return [self._one(*each) for each in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: Any, asked: SamplingParams) -> Any:
        tokens = torch.tensor([prompt["prompt_token_ids"]])
        if asked.prompt_logprobs is None:
            assert asked.temperature == 0
            found = self.network.generate(tokens, max_new_tokens=asked.max_tokens, do_sample=False)
            text = self.tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=False)
            for stop in asked.stop:
                text = text.split(stop)[0]
            return SimpleNamespace(outputs=[SimpleNamespace(text=text)])
        scores = self.network(tokens).logits[0].float().log_softmax(-1)
        logprobs: list[Any] = [None]
        for place, token in enumerate(tokens[0, 1:].tolist()):
            best = int(scores[place].argmax())
            logprobs.append({each: SimpleNamespace(logprob=float(scores[place, each])) for each in (token, best)})
        return SimpleNamespace(prompt_logprobs=logprobs)
