"""The fixtures of pytest for plugin authors. Installing the core is enough; nothing has to be imported.

All are named ``analytics_*``, so that they meet no other's, and live as long as one test. What they are made of is
imported when a test asks for one of them: pytest loads this module in every run of every project.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from analytics_core.testing.faults import Faults
    from analytics_core.testing.host import EmbeddedHost
    from analytics_core.testing.rows import Clock, Feed


@pytest.fixture
def analytics_clock() -> Clock:
    """The time of this test: ``.now``, ``.set(datetime)``, ``.advance(minutes=31)``. It gives the watermarks of
    `analytics_events` and `analytics_host`."""
    from analytics_core.testing.rows import Clock

    return Clock()


@pytest.fixture
def analytics_events(analytics_clock: Clock) -> Feed:
    """``analytics_events(rows, tenant)`` is `testing.batch` under `analytics_clock`: positions go on from call to call,
    rows without a time happen now, and without rows it is an empty batch that says how late it is."""
    from analytics_core.testing.rows import Feed

    return Feed(analytics_clock)


@pytest.fixture
def analytics_host(tmp_path: Path, analytics_events: Feed) -> Iterator[Callable[..., EmbeddedHost]]:
    """``analytics_host(MyPlugin, "user-behavior", settings={"my-plugin": {...}})`` starts a real host in ``tmp_path``,
    with plugins given as classes or as installed names, in threads. See `testing.host.embedded` for its options.

    Called again, it ends the host before and goes on over the same data: a restart.
    """
    from analytics_core.testing.host import embedded

    with ExitStack() as running:

        def start(*plugins: type | str, **options: Any) -> EmbeddedHost:
            running.close()
            return running.enter_context(embedded(plugins, tmp_path / "analytics", analytics_events, **options))

        yield start


@pytest.fixture
def analytics_reload() -> Iterator[Callable[..., Any]]:
    """``analytics_reload(plugin, settings)`` makes an instance of a new generation of the plugin's sources, as they are
    now, hands it the state if the plugin exports one, and tears the old one down, as a reload of the host does.

    A class without ``plugin.yaml`` has no sources of its own: then it is a new instance.
    """
    from analytics_core.testing.declared import context_of, generations
    from analytics_core.testing.running import Subject, adopted

    with ExitStack() as made:
        running: list[tuple[Subject, type]] = []

        def reload(plugin: Any, settings: dict[str, Any] | None = None) -> Any:
            known = [each for each in running if each[0].instance.target is plugin]
            if not known:
                known = [(made.enter_context(adopted(plugin)), type(plugin))]
                running.extend(known)
            ((subject, plugin_class),) = known
            following = made.enter_context(generations(plugin_class))
            subject.renew(following(), context_of(plugin_class, settings or {}))
            return subject.instance.target

        yield reload


@pytest.fixture
def analytics_faults() -> Faults:
    """Hooks that fail on purpose: ``with analytics_faults.raises(MyPlugin, "process", at=3): ...``, ``.hangs(...)``,
    ``.returns(MyPlugin, "process", 42)``. Begin the fault before the host, and keep it as long as it is to hold."""
    from analytics_core.testing.faults import Faults

    return Faults()
