"""Opens everything the host is made of, in order, and closes it in the opposite order: one `AsyncExitStack`, no engine.

    log ─ dedup ─ lake ─ state ─ bus ─ outbox ─ plugin host ─ store writer ─ live metrics ─ intake ─ live ─ HTTP

Whoever opens a thing puts its closing on the stack, so a start that fails half-way closes what it had opened.
"""

from analytics_core.app.serving import serve as serve
