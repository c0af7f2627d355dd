"""A model type whose answers several processes share, as `accelerate launch` starts them.

Knows lm-eval's calls and how texts are batched. How a text is written is the model type's own.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from aft_harness.engine.processes import ALONE, Processes
from aft_harness.errors import CacheError
from aft_harness.harness.batching import KEPT_AT_ONCE, batches, is_sampled
from aft_harness.harness.guarded import GuardedLM


class SharedLM(GuardedLM):
    """Goes before a model type of lm-eval among the bases of one of ours.

    Attributes:
        processes: Who shares the work: each knows all answers in the end.
    """

    processes: Processes = ALONE

    def join(self, processes: Processes) -> None:
        """Shares the work with other processes.

        lm-eval would deal out documents, and only where it sees several GPUs. Here each process is asked everything,
        and they share forward passes: samples and their order are those of one process.
        """
        self.processes = processes
        if processes.count > 1:
            self._rank, self._world_size = 0, 1

    @abstractmethod
    def written(self, requests: list[Instance], hidden: bool) -> list[str]:
        """Writes texts in this process, with or without a bar."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the stock model type; sampled texts are written by every process, each from what came before."""
        hidden = disable_tqdm or bool(os.environ.get("TQDM_DISABLE")) or self.processes.rank != 0
        self.guard(requests)
        if self.processes.count == 1 or any(map(is_sampled, requests)):
            return self.written(requests, hidden)
        calls = enumerate(batches(requests, self, KEPT_AT_ONCE))
        mine = [place for number, call in calls if self.processes.part.takes(number) for place in call]
        texts = dict(zip(mine, self.written([requests[place] for place in mine], hidden) if mine else (), strict=True))
        texts = self.processes.merged(texts)
        return [texts[place] for place in range(len(requests))]

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """As other model types; several processes cannot write one database.

        Raises:
            CacheError: They were asked to, or another model or booster wrote the database.
        """
        database: Any = cache_hook.dbdict
        if self.processes.count > 1 and database is not None:
            raise CacheError("--use_cache does not work with several processes; leave it out, or start one process")
        super().set_cache_hook(cache_hook)
