"""For every test of the repository."""

import os
import signal

import structlog
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A traceback as production has it: to draw one with all its local variables takes tenths of a second.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback

# Tests run side by side; a thread of OpenBLAS for each processor in each of their processes only costs their start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What a shell runs in the background does not hear Ctrl-C, nor does what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
