"""An operator mends a plugin of a running server and has its history counted anew, also across ``kill -9``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.flow.plugin_house import COUNTING, COUNTING_HOOKS
from tests.flow.server_house import equals, house
from tests.flow.test_live_reload import LANES, analytics, figure, post, save, source, state

pytestmark = pytest.mark.server


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_history_is_counted_anew_by_a_mended_plugin(tmp_path: Path, isolation: str) -> None:
    wrong = COUNTING.replace("self.n += len(batch)", "self.n += 2 * len(batch)")
    with house(tmp_path, host=LANES) as server:
        server.install("counting", wrong, COUNTING_HOOKS, isolation=isolation)
        server.start()
        post(server, 3)
        equals(figure(server), 6, "counted wrongly")
        save(source(server), source(server).read_text().replace("self.n += 2 * len(batch)", "self.n += len(batch)"))
        state(server, "active", 2)
        post(server, 1)
        equals(figure(server), 7, "with the state of the wrong code")
        shown = analytics("plugins", "replay", "counting", "--url", server.url, "--json")
        assert shown.returncode == 0, shown.stderr
        replay = json.loads(shown.stdout)
        assert (replay["state"], replay["events"], replay["difference"]["sample"][0]["new"]) == ("ready", 4, 4)
        assert figure(server)() == 7, "nothing has changed yet"
        assert server.ask("POST", "/api/v1/plugins/counting/replays", {}).status == 409, "one at a time"
        server.kill()
        server.start()
        assert server.get("/api/v1/plugins/counting/replays") == {"replays": []}
        assert not list(tmp_path.rglob("replays/*.db*")), "what a dead server has left is dropped"
        done = analytics("plugins", "replay", "counting", "--since", "7d", "--yes", "--url", server.url)
        assert done.returncode == 0, done.stderr
        assert "switched: generation 2 runs" in done.stdout
        equals(figure(server), 4, "counted anew")
        post(server, 1)
        equals(figure(server), 5, "and on from there")
        server.kill()
        server.start()
        post(server, 1)
        equals(figure(server), 6, "the state was switched with the outputs")
