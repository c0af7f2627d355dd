"""The words of the file format: kinds of injections and their settings, and how choices were ranked.

Knows names only, so that it loads no torch.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["static", "contextual"]
"""Of an injection: a vector, or a small MLP of the hidden state."""

Activation = Literal["gelu", "silu", "tanh"]
"""Of that MLP."""

InputNorm = Literal["none", "rms"]
"""What that MLP makes of the hidden state first."""

ChoiceNorm = Literal["none", "characters", "bytes", "tokens"]
"""What the loglikelihood of a choice is divided by; `characters` is what lm-eval's `acc_norm` ranks by."""
