"""What the study uses of `scripts/tools`, which is no folder that scripts of studies find by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

if (TOOLS := str(Path(__file__).parents[2] / "tools")) not in sys.path:
    sys.path.append(TOOLS)
from models.kinds import ROADMAP
from tables import updated

__all__ = ["ROADMAP", "updated"]
