"""The commands that make a booster or an evaluation again, from what files record of them.

Knows the options of the commands and what a provenance says. Where a record cannot name something, such as the folder
of a local model, the command has a word in capitals, and a comment says what belongs there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aft_harness.boosters.layers import ranges
from aft_harness.boosters.model_identity import EMBEDDED
from aft_harness.training.recipe import RECIPES

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.provenance import Provenance

_COMMIT = re.compile("[0-9a-f]{40}")

_OPTIONS = ("kind", "rank", "objective", "choice_norm", "temperature", "epochs", "lr", "rate_unit", "schedule")
"""Settings that are options of `aft train`, under the same names."""

MOST = 12
"""Boosters that a command names."""


def training_command(name: str, booster: Booster) -> str | None:
    """The command that makes a booster; None where its record does not tell."""
    provenance = booster.provenance
    if provenance.method == "aft" and provenance.tasks and provenance.hyperparameters:
        return _trained(name, booster)
    if provenance.method == "mix" and provenance.parts:
        parts = " ".join(
            f"PART-{place}.safetensors:{1 if part.strength is None else part.strength:g}"
            for place, part in enumerate(provenance.parts, start=1)
        )
        said = "\n".join(
            f"# PART-{place}: booster {part.booster_sha256[:12]}"
            for place, part in enumerate(provenance.parts, start=1)
        )
        return f"{said}\naft mix {parts} -o {shlex.quote(name + '.safetensors')}"
    output = ["--layer", str(booster.layers[0]), "--output", f"{name}.safetensors"]
    if provenance.method == "mean-difference" and provenance.tasks:
        words = ["aft", "extract", "mean-difference", *_model_words(provenance), *_task_words(provenance), *output]
        return f"{_model_line(provenance)}{_joined(words)}"
    if provenance.method == "function-vector" and provenance.questions:
        words = [
            "aft",
            "extract",
            "function-vector",
            *_model_words(provenance),
            "--questions",
            "QUESTIONS.txt",
            *output,
        ]
        told = f"# QUESTIONS.txt: the booster's {len(provenance.questions)} questions, one a line (aft show --json)\n"
        return f"{_model_line(provenance)}{told}{_joined(words)}"
    return None


def _trained(name: str, booster: Booster) -> str:
    provenance = booster.provenance
    how: Mapping[str, Any] = provenance.hyperparameters or {}
    words = ["aft-train", *_model_words(provenance), *_task_words(provenance)]
    count = provenance.base_model.layers if provenance.base_model else 0
    if len(booster.layers) != count:
        words += ["--layers", ranges(booster.layers)]
    for setting in _OPTIONS:
        value = how.get(setting)
        if value is not None and value != getattr(RECIPES["default"], setting):
            words += [f"--{setting.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    batch, seed, split = how.get("batch_size"), provenance.seed, how.get("split_seed")
    words += ["--batch-size", str(batch)] if batch not in (None, RECIPES["default"].batch_size) else []
    words += ["--split-seed", str(split)] if split else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--start", "START.safetensors"] if provenance.start else []
    begun = f"# START: booster {provenance.start.booster_sha256[:12]}\n" if provenance.start else ""
    return f"{_model_line(provenance)}{begun}{_joined([*words, '--output', name + '.safetensors'])}"


def _model_words(provenance: Provenance) -> list[str]:
    base = provenance.base_model
    revision = ["--revision", base.revision] if base and base.revision else []
    return ["--model", "$MODEL", *revision, *(["--dtype", provenance.dtype] if provenance.dtype else [])]


def _model_line(provenance: Provenance) -> str:
    base = provenance.base_model
    if base is None:
        return model_line("", None)
    return model_line(base.name, base.fingerprint if base.revision is None else None)


def model_line(name: str, fingerprint: str | None) -> str:
    """The line that says what $MODEL is: a hub id, or a folder that only its owner knows."""
    if name == EMBEDDED:
        return "MODEL=$(aft demo-model)\n"
    if fingerprint is None and name:
        return f"MODEL={shlex.quote(name)}\n"
    return f"MODEL=FOLDER   # of {' '.join(name.split()) or 'the model'}, fingerprint {(fingerprint or '')[:12]}\n"


def _task_words(provenance: Provenance) -> list[str]:
    """Which documents: those of the booster that training started from are not drawn again."""
    inherited = (provenance.start.provenance or {}).get("tasks", ()) if provenance.start else ()
    records = provenance.tasks[: len(provenance.tasks) - len(inherited)] or provenance.tasks
    words = ["--tasks", ",".join(record.task for record in records), *_include([record.task for record in records])]
    alone = len(records) == 1
    for record in records:
        prefix = "" if alone else f"{record.task}="
        words += ["--limit", f"{prefix}{record.n_train}"]
        words += ["--dev-docs", f"{prefix}{record.n_development}"] if record.n_development else []
        words += ["--train-docs", f"{prefix}{record.split}"] if record.split else []
        words += ["--weight", f"{record.task}={record.weight:g}"] if record.weight != 1 and not alone else []
        words += ["--target-field", f"{prefix}{record.target_field}"] if record.target_field else []
    shots = {record.num_fewshot for record in records}
    words += ["--num-fewshot", str(shots.pop())] if len(shots) == 1 and shots != {0} else []
    prompting: Mapping[str, Any] = provenance.prompting or {}
    words += ["--apply-chat-template"] if prompting.get("apply_chat_template") else []
    if instruction := prompting.get("system_instruction"):
        words += ["--system-instruction", str(instruction)]
    return words


def _include(tasks: Sequence[str]) -> list[str]:
    """Where the package's own tasks are, where one of them is asked."""
    from aft_harness.harness.suites import listed

    bundled = {name for name, _ in listed()}
    return ["--include-path", "$(aft tasks)"] if bundled & set(tasks) else []


def evaluation_commands(rows: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> list[str]:
    """The commands that evaluate again what rows tell of.

    Args:
        rows: Of tables; those of a sweep name it under `sweep`.
        files: Names of booster files by sha256.

    Returns:
        One for each model, data type and number of few-shot examples, and one for each sweep.
    """
    groups: dict[tuple[str, _Asked], list[Mapping[str, Any]]] = {}
    for row in rows:
        asked = _Asked(row["model"], row["revision"], row["dtype"], row["num_fewshot"])
        groups.setdefault((row.get("sweep", ""), asked), []).append(row)
    return [
        _swept(sweep, asked, found, files) if sweep else _evaluated(asked, found, files)
        for (sweep, asked), found in groups.items()
    ]


class _Asked(NamedTuple):
    """What the rows of a command have in common."""

    model: str
    revision: str
    dtype: str
    shots: int | None

    @property
    def line(self) -> str:
        """The line that says what $MODEL is."""
        return model_line(self.model, None if _COMMIT.fullmatch(self.revision) else self.revision)

    @property
    def words(self) -> list[str]:
        commit = ["--revision", self.revision] if _COMMIT.fullmatch(self.revision) else []
        return ["--model", "$MODEL", *commit, *(["--dtype", self.dtype] if self.dtype else [])]

    @property
    def fewshot(self) -> list[str]:
        return ["--num-fewshot", str(self.shots)] if self.shots else []


def _swept(sweep: str, asked: _Asked, rows: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """The command of a sweep. Which options of training it had stands in the boosters that it made."""
    first, layers = rows[0], sorted({row["layers"] for row in rows}, key=lambda text: (len(text), text))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    trained = first["trained_on"].split("+") if first["trained_on"] else tasks
    words = ["aft", "sweep", "layers" if len(layers) > 1 else "strengths", *asked.words]
    words += ["--tasks", ",".join(trained), *_include([*trained, *tasks])]
    if len(layers) > 1:
        words += ["--layers", ",".join(layers)]
        words += ["--limit", str(first["trained_n"])] if first["trained_n"] and len(trained) == 1 else []
    else:
        strengths = sorted({row["strength"] for row in rows})
        file = files.get(first["booster_sha256"])
        words += ["--vector", f"{file}.safetensors" if file else "BOOSTER.safetensors"]
        words += ["--strengths", ",".join(f"{strength:g}" for strength in strengths)]
    words += ["--dev-docs", str(first["development_n"])] if first["development_n"] and len(trained) == 1 else []
    words += ["--test-tasks", ",".join(tasks)] if tasks != trained else []
    words += asked.fewshot
    return f"{asked.line}{_joined([*words, '--output', sweep])}"


def _evaluated(asked: _Asked, rows: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    vectors: dict[str, None] = {}
    for row in rows:
        if file := files.get(row["booster_sha256"]):
            strength = "" if row["strength"] in (None, 1) else f":{row['strength']:g}"
            vectors[f"{file}.safetensors{strength}"] = None
        elif ".safetensors" in row["booster"]:  # a table of `aft evaluate` calls boosters as they were given
            vectors[row["booster"]] = None
    named = list(vectors)[:MOST] or ["BOOSTER.safetensors"]
    words = ["aft", "evaluate", *asked.words, "--tasks", ",".join(tasks), *_include(tasks)]
    words += asked.fewshot
    for vector in named:
        words += ["--vector", vector]
    more = f"# and {len(vectors) - MOST} more boosters\n" if len(vectors) > MOST else ""
    return f"{asked.line}{more}{_joined([*words, '--output', 'out'])}"


def _joined(words: Sequence[str]) -> str:
    """A command, quoted for a shell; an option a line where it is long."""
    quoted = [f'"{word}"' if word in ("$MODEL", "$(aft tasks)") else shlex.quote(word) for word in words]
    line = " ".join(quoted)
    if len(line) <= 100:
        return line
    parts: list[list[str]] = [[]]
    for raw, word in zip(words, quoted, strict=True):
        if raw.startswith("-") and len(raw) > 1 and sum(map(len, parts[-1])) + len(parts[-1]) > 70:
            parts.append([])
        parts[-1].append(word)
    return " \\\n    ".join(" ".join(part) for part in parts)
