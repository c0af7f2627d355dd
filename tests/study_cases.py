"""A small transfer study of a tiny model: four boosters, two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TOYS = str(Path(__file__).parent / "toy_tasks")


def study(checkpoint: str, **changes: Any) -> dict[str, Any]:
    """The study, as a plan's content."""
    return {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 4}],
        "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2.0}}},
        "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}},
        "layers": [[1]],
        "seeds": [0, 1],
        "recipe": {"epochs": 1, "lr": 0.3, "rate_unit": "absolute"},
        "include_path": [TOYS],
        **changes,
    }


def study_file(folder: Path, checkpoint: str, **changes: Any) -> Path:
    """The study as a file."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(study(checkpoint, **changes)))
    return path
