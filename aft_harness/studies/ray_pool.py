"""Workers on a Ray cluster: each an actor that Ray places, with its CPUs and GPUs.

Knows Ray, and what a worker must have installed. Knows nothing of studies. Ray is imported when a pool is opened.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aft_harness.errors import StudyError
from aft_harness.studies.cells import Work
from aft_harness.studies.dispatch import Cell
from aft_harness.studies.worker import Failure, Outcome, Worker
from aft_harness.studies.workers import Place, Workers
from aft_harness.text import reason
from aft_harness.versions import installed

_PORT = 10001
"""Where a cluster takes clients, unless it was told otherwise."""

_PATIENCE = 10.0
"""Seconds that a cluster has to take a connection."""

_STARTS = 3
"""Times that a worker may be lost before it said anything."""

_STORE = 512 * 2**20
"""Bytes of shared memory on this machine: what goes through it are boosters and answers."""


class RayPool:
    """See `dispatch.Pool`."""

    def __init__(self, ray: Any, work: Work, count: int, demand: Mapping[str, float]) -> None:
        """Asks Ray for the workers.

        Args:
            ray: The module, connected.
            work: What they get.
            count: How many.
            demand: CPUs and GPUs of each, by Ray's names.
        """
        self._ray, self._demand = ray, demand
        self._work = ray.put(work)
        self._actor = ray.remote(_RayWorker)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._greeted: set[int] = set()
        self._starts: dict[int, int] = {}
        self._expected = installed()
        for worker in range(count):
            self._hire(worker)

    @property
    def workers(self) -> set[int]:
        """Those that are there, or will be."""
        return set(self._actors)

    def share(self, value: Any) -> Any:
        """Puts what several cells get where all workers reach it."""
        return self._ray.put(value)

    def start(self, worker: int, cell: Cell) -> None:
        """Hands a cell to a worker."""
        call = self._actors[worker].run.remote(cell.method, cell.model, *cell.arguments)
        self._calls[call] = worker

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """See `dispatch.Pool`."""
        if not self._calls:
            raise StudyError("all workers were lost; rerun the same command to resume")
        done, _ = self._ray.wait(list(self._calls), num_returns=1)
        found: list[tuple[int, Outcome | None]] = []
        for call in done:
            worker = self._calls.pop(call)
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                greeted = worker in self._greeted
                self._lost(worker, error)
                if greeted:
                    found.append((worker, Failure(f"the worker was lost ({_why(error)})", lost=True)))
                continue
            if worker in self._greeted:
                found.append((worker, answer))
            else:
                check(answer["installed"], self._expected, answer["host"])
                self._greeted.add(worker)
                self._starts[worker] = 0
                found.append((worker, None))
        return found

    def close(self) -> None:
        """Dismisses the workers."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors, self._calls = {}, {}

    def _hire(self, worker: int) -> None:
        actor = self._actor.options(**self._demand).remote(self._work)
        self._actors[worker] = actor
        self._calls[actor.hello.remote()] = worker

    def _lost(self, worker: int, error: Exception) -> None:
        self._greeted.discard(worker)
        self._starts[worker] = self._starts.get(worker, 0) + 1
        self._ray.kill(self._actors.pop(worker))
        if self._starts[worker] < _STARTS:
            self._hire(worker)
        elif not self._actors:
            raise StudyError(f"no worker could be started: {_why(error)}")


class _RayWorker(Worker):
    """A worker that is given references to what several cells get."""

    def run(self, method: str, model: int, *arguments: Any) -> Outcome:
        """See `Worker`."""
        import ray

        def fetched(value: Any) -> Any:
            return [ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in value]

        given = [fetched(value) if isinstance(value, list) else value for value in arguments]
        return super().run(method, model, *given)


def check(found: Mapping[str, str], expected: Mapping[str, str], host: str) -> None:
    """Refuses a worker with other versions than are here: results of one study must be of one kind.

    Raises:
        StudyError: With the first of them.
    """
    for name, version in expected.items():
        if found.get(name) != version:
            raise StudyError(
                f"the worker on {host} has {name} {found.get(name, 'of another kind')}, and here it is {version}; "
                "install the same versions on all nodes (pip freeze)"
            )


@contextmanager
def opened(place: Place, work: Work, workers: Workers) -> Iterator[RayPool]:
    """Workers at a place, which are dismissed afterwards; a cluster of this machine alone is ended, too.

    Args:
        place: Where.
        work: What they get.
        workers: How many, and what each gets.

    Raises:
        StudyError: Ray is not installed, there is no cluster, or no room in it.
    """
    place.check_installed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours tells nobody how it is used
    if place.address and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # read at import; Ray's clients, unlike all others, send none unasked
    import ray

    here = ray.is_initialized()
    if place.count:
        demand = _share_of_machine(place.count, workers)
        if not here:
            _start(ray, place.count, demand)
        count = place.count
    else:
        if not here:
            _connect(ray, place)
        demand = _demand(ray.cluster_resources(), workers)
    try:
        if not place.count:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            space = sum(room(node["Resources"], demand) for node in nodes)
            if not space:
                raise StudyError(f"{place}: no node has {_in_words(demand)}; name less under workers in the plan")
            count = workers.count or space
            _probe(ray, [node for node in nodes if room(node["Resources"], demand)])
        pool = RayPool(ray, work, count, demand)
        try:
            yield pool
        finally:
            pool.close()
    finally:
        if not here:
            ray.shutdown()


def _share_of_machine(count: int, workers: Workers) -> dict[str, float]:
    import torch

    gpus = torch.cuda.device_count()
    cpus = workers.cpus or max(1, (os.cpu_count() or 1) // count)
    each = workers.gpus if workers.gpus is not None else (float(gpus // count) if gpus >= count else gpus / count)
    if each > gpus:
        raise StudyError(f"this machine has {gpus} GPUs, and each worker would need {each:g}")
    return {"num_cpus": cpus, "num_gpus": math.floor(each * 1e4) / 1e4}


def _demand(resources: Mapping[str, float], workers: Workers) -> dict[str, float]:
    gpus = workers.gpus if workers.gpus is not None else min(resources.get("GPU", 0.0), 1.0)
    return {"num_cpus": workers.cpus or 1, "num_gpus": gpus}


def room(resources: Mapping[str, float], demand: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    pairs = [(resources.get("CPU", 0.0), demand["num_cpus"]), (resources.get("GPU", 0.0), demand["num_gpus"])]
    return int(min(there / asked for there, asked in pairs if asked))


def _in_words(demand: Mapping[str, float]) -> str:
    gpus = f" and {demand['num_gpus']:g} GPUs" if demand["num_gpus"] else ""
    return f"{demand['num_cpus']:g} CPUs{gpus}"


def _start(ray: Any, count: int, demand: Mapping[str, float]) -> None:
    import torch

    os.environ.setdefault("RAY_worker_niceness", "0")  # they are what this machine works on, not what runs beside it
    cpus = max(os.cpu_count() or 1, math.ceil(count * demand["num_cpus"]))
    _initialised(
        ray,
        f"local:{count}",
        address="local",
        num_cpus=cpus,
        num_gpus=torch.cuda.device_count(),
        include_dashboard=False,
        object_store_memory=_STORE,
    )


def _connect(ray: Any, place: Place) -> None:
    if place.address is None:
        _initialised(ray, "ray", address=os.environ.get("RAY_ADDRESS") or "auto")
        return
    host, _, port = place.address.removeprefix("ray://").rpartition(":")
    host, port = (host, port) if host else (port, str(_PORT))
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise StudyError(f"{place}: no Ray cluster takes clients there ({why})") from None
    _initialised(ray, str(place), address=f"ray://{host}:{port}")


def _has_token() -> bool:
    """Whether Ray would find a token of a cluster here."""
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").is_file()


def _initialised(ray: Any, place: str, **options: Any) -> None:
    import logging

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
        if place == "ray" and isinstance(error, ConnectionError):
            raise StudyError(
                "ray: there is no Ray cluster here; start one with `ray start --head`, or use local:N"
            ) from None
        hint = "; does it need a token (~/.ray/auth_token)?" if "timeout" in str(error) else ""
        raise StudyError(f"{place}: {reason(error, sentence=True)}{hint}") from None


def _probe(ray: Any, nodes: list[Mapping[str, Any]]) -> None:
    """Asks every node for what is installed, before anything of this package is needed there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    expected = installed()
    asked = ray.remote(_self_contained())
    calls = {
        asked.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): str(node.get("NodeManagerHostname") or node["NodeID"])
        for node in nodes
    }
    for call, host in calls.items():
        try:
            found = ray.get(call)
        except ray.exceptions.RayError as error:
            raise StudyError(f"the node {host} does not answer: {_why(error)}") from None
        if found is None:
            raise StudyError(f"aft-harness is not installed on {host}; install the same version on all nodes")
        check(found, expected, host)


def _self_contained() -> Callable[[], dict[str, str] | None]:
    """A function that travels by value: a node that has no such package can still say so."""

    def found() -> dict[str, str] | None:
        try:
            from aft_harness.versions import installed
        except ImportError:
            return None
        return installed()

    return found


def _why(error: BaseException) -> str:
    text = " ".join(str(error).split())
    for sign in ("ModuleNotFoundError", "ImportError"):
        if sign in text:
            return text[text.index(sign) :][:200]
    if "Worker exit type" in text:
        detail = text.split("Worker exit detail:")[-1].strip()
        return detail.split(". ")[0][:200]
    return f"{type(error).__name__}: {text.split('. ')[0][:200]}"
