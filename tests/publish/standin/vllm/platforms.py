"""Where the stand-in runs."""

from types import SimpleNamespace

current_platform = SimpleNamespace(device_type="cpu")
