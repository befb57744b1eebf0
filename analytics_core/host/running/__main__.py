"""Starts a worker: ``python -m analytics_core.host.running LANE CALLS LIFE``."""

import sys
from importlib import import_module

# structlog imports rich where it finds it, to draw tracebacks; a worker sends them to its host as text
sys.modules["rich"] = None  # type: ignore[assignment]
import_module("structlog")
del sys.modules["rich"]

import_module("analytics_core.host.running.worker").main()
