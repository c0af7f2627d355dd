"""The card of a booster: metadata for the hub, how it is used, and what its leaderboard rows say, in words.

Knows rows and Markdown. Every number of a card is taken from a row or from the booster's own provenance. Knows nothing
of files or of the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aft_harness.boosters import hub
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.card_header import ENTRY, RESULTS
from aft_harness.boosters.layers import ranges
from aft_harness.errors import ReferenceSyntaxError
from aft_harness.publish.library.publication import Row, is_claim
from aft_harness.results import table
from aft_harness.results.table import SIGNIFICANT, markdown
from aft_harness.results.text import one_line
from aft_harness.text import between

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TAG = "aft-harness"
"""By which boosters are found on the hub."""

TAGS = (TAG, "activation-steering", "steering-vector", "lm-evaluation-harness")

BEGIN, END = "<!-- aft_harness: written by aft push -->", "<!-- aft_harness: end -->"
"""Around what is written anew by each push; what stands outside is kept."""

TEXT_METRICS = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity")
"""Metrics of how well a model predicts plain text."""

METHODS = {
    "aft": "Activation Fine-Tuning (gradient descent on the correct answers)",
    "mean-difference": "the mean difference of activations",
    "function-vector": "the function vector of step-by-step prompts",
    "mix": "mixing other boosters",
    "imported": "importing another tool's file",
}

TRAINED, OTHER, TEXT = "On what it was trained on", "On other tasks", "On plain text"
"""Groups of results."""

HEADS = ("task", "result", "change [95% interval]", "corrected p", "documents", "got worse")


@dataclass(frozen=True)
class About:
    """What a card is about.

    Attributes:
        booster: The booster.
        file: Its file's name.
        size: Bytes of the file.
        title: The card's heading.
        reference: What `vector=` calls it.
        rows: All rows about it.
        lower: Metrics of which a lower value is the better one.
        base_model: Hub id of the base model; None for the one that the provenance has, if it is an id.
    """

    booster: Booster
    file: str
    size: int
    title: str
    reference: str
    rows: Sequence[Row]
    lower: frozenset[str] = frozenset()
    base_model: str | None = None

    @property
    def base(self) -> str:
        """The base model's name."""
        model = self.booster.provenance.base_model
        return model.name if model is not None else "unknown"

    @property
    def base_id(self) -> str | None:
        """The base model's hub id, if it has one."""
        if self.base_model is not None:
            return hub.check_repo(self.base_model)
        try:
            return hub.check_repo(self.base)
        except ReferenceSyntaxError:
            return None


def render(about: About, previous: str = "") -> str:
    """The card's text.

    Args:
        about: What it is about.
        previous: The card that it takes the place of: what stands outside of the part that is written here is kept.
    """
    written = _body(about)
    body = f"{BEGIN}\n{written}\n{END}"
    previous = previous.replace("\r\n", "\n")
    if BEGIN in previous and END in previous:
        text = re.sub(r"\A\s*---\n.*?\n---\n", "", previous, count=1, flags=re.DOTALL)
        body = between(text, BEGIN, END, written).strip()
    return f"---\n{metadata(about).to_yaml()}\n---\n\n{body}\n"


def metadata(about: About) -> ModelCardData:
    """The card's metadata, as the hub reads them."""
    from huggingface_hub import EvalResult, ModelCardData

    booster, provenance = about.booster, about.booster.provenance
    claims = [row for row in about.rows if is_claim(row)]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["task"],
            dataset_name=row["task"],
            metric_type=row["metric"],
            metric_value=float(row["steered"]),
            metric_name=f"{row['metric']} with the booster",
            # Of the metric, since results of one data set share its arguments.
            metric_args={key: row[key] for key in _KEPT if row[key] is not None},
        )
        for row in claims
    ]
    named: dict[str, Any] = {"model_name": about.title, "eval_results": results} if results else {}
    entry: Any = {
        "file": about.file,
        "sha256": booster.sha256,
        "model": about.base,
        "layers": ranges(booster.layers),
        "parameters": booster.parameters,
        "trained_on": list(provenance.trained_on),
    }
    return ModelCardData(
        base_model=about.base_id,
        base_model_relation="adapter" if about.base_id else None,
        library_name=TAG,
        tags=list(TAGS),
        **_licence(provenance.licence),
        **named,
        **{ENTRY: entry},
    )


_KEPT = ("num_fewshot", "filter", "n", "baseline", "delta", "ci_low", "ci_high", "p_value", "p_holm")
"""Cells of a row that go with a result in the metadata."""


def _licence(name: str | None) -> dict[str, Any]:
    """A licence as the hub has it: one of its ids, or `other` with a name."""
    if not name:
        return {}
    identifier = name.strip().lower().replace(" ", "-")
    known = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier)
    return {"license": identifier} if known else {"license": "other", "license_name": name}


def _body(about: About) -> str:
    parts = [f"# {_plain(about.title)}", _description(about), _use(about), *_results(about), _check(about)]
    return "\n\n".join(parts)


def _description(about: About) -> str:
    booster, provenance = about.booster, about.booster.provenance
    kinds = sorted({spec["kind"] for spec in booster.specs.values()})
    base = f"[{about.base_id}](https://huggingface.co/{about.base_id})" if about.base_id else _plain(about.base)
    made_for = (
        f" (made and measured with {_plain(about.base)})" if about.base_id and about.base_id != about.base else ""
    )
    what = "a learned vector" if kinds == ["static"] else f"a learned {' or '.join(kinds)} injection"
    layers = ranges(booster.layers)
    where = f"layer{'s' if len(booster.layers) > 1 else ''} {layers}"
    lines = [
        f"A booster for {base}{made_for}: {what} added to the output of decoder {where}, {booster.parameters:,} "
        f"numbers in {about.size / 1000:.0f} KB. The model itself stays as it is."
    ]
    if provenance.method:
        how = METHODS.get(provenance.method, _plain(provenance.method))
        lines.append(f"Made by {how}.")
    for record in provenance.tasks:
        split = f" ({_plain(record.split)})" if record.split else ""
        lines.append(f"Trained on {record.n_train} documents of {_plain(record.task)}{split}.")
    return " ".join(lines)


def _plain(text: str) -> str:
    """Text from outside in a line of Markdown."""
    return markdown(one_line(text))


def _use(about: About) -> str:
    model = about.base_id or "MODEL"
    load = f'aft.Booster.load("{about.reference}")'
    return f"""## Use

```sh
pip install aft-harness
lm_eval --model steered-hf --model_args pretrained={model},vector={about.reference} --tasks TASKS
```

```python
import aft_harness as aft

with {load}.applied_to(model):  # a transformers model
    model.generate(**inputs)
```

`aft export` writes it for llama.cpp, vLLM, PEFT and plain transformers."""


def _check(about: About) -> str:
    if not about.rows:
        return "To evaluate it: `aft evaluate --model MODEL --vector REFERENCE --tasks TASKS`."
    return f"`aft verify {about.reference}` evaluates the model again and says of each claim whether it holds."


def _results(about: About) -> list[str]:
    claims = [row for row in about.rows if is_claim(row)]
    others = [row for row in about.rows if not is_claim(row)]
    if not claims and not others:
        return ["## Results\n\nNot evaluated: no leaderboard has a row about this booster, so nothing is claimed."]
    sha = about.booster.sha256[:12]
    parts = [
        "## Results\n\n"
        f"Each line compares the model with and without the booster (sha256 `{sha}`) on the same documents, and is a "
        f"row of [{RESULTS}]({RESULTS}). *Got worse*: documents that are right without the booster and wrong with it. "
        "The p-values are of paired tests, corrected (Holm) for all results of the leaderboard that the row is from; "
        f"below {SIGNIFICANT} a result is called better or worse."
    ]
    groups: dict[str, list[Row]] = {group: [] for group in (TRAINED, OTHER, TEXT)}
    for row in claims:
        groups[_group(row)].append(row)
    for name, rows in groups.items():
        if rows:
            parts.append(f"{name}:\n\n{_table(rows, about.lower)}")
        elif name != TRAINED:
            parts.append(f"{name}: not measured.")
    if others:
        parts.append(
            "Other metrics and strengths, which are not corrected and claim nothing:\n\n" + _table(others, about.lower)
        )
    return parts


def _group(row: Row) -> str:
    if row["metric"] in TEXT_METRICS:
        return TEXT
    return OTHER if row["transfer"] else TRAINED


def _table(rows: Iterable[Row], lower: frozenset[str]) -> str:
    lines = [list(HEADS), ["---"] * len(HEADS), *(_line(row, lower) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(row: Row, lower: frozenset[str]) -> list[str]:
    cells = table.cells(row)
    task = cells["task"]
    if row["num_fewshot"]:
        task += f", {row['num_fewshot']}-shot"
    if row["strength"] != 1:
        task += f", strength {cells['strength']}"
    if row["seed"] == table.POOLED:
        task += ", mean over seeds"
    scores = f"{cells['metric']} {cells['baseline']} to {cells['steered']}"
    result = f"{in_words(row, lower)}: {scores}" if is_claim(row) else scores
    return [
        _plain(task),
        _plain(result),
        cells["change [95% interval]"].removesuffix(" *"),
        cells["p (Holm)"] or f"({cells['p']}, not corrected)",
        cells["n"],
        _worse(row),
    ]


def _worse(row: Row) -> str:
    """The share of documents that got worse; not known of metrics that are not 0 or 1."""
    return "" if row["lost"] is None else f"{row['lost'] / row['n']:.1%} ({row['lost']})"


def in_words(row: Row, lower: frozenset[str]) -> str:
    """What a claim says: better, worse, or no significant change, and how large one could have gone unseen."""
    if row["p_holm"] >= SIGNIFICANT or row["delta"] == 0:
        least = row["min_detectable"]
        if least is None or not least < float("inf"):
            return "no significant change"
        unit = f"{100 * least:.1f} points" if table.is_fraction(row) else f"{least:.2g}"
        return f"no significant change (one below {unit} could go unseen)"
    return "better" if (row["delta"] > 0) != (row["metric"] in lower) else "worse"
