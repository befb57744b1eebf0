"""What a process that runs a plugin's code inherits."""

from __future__ import annotations

import pytest

from analytics_core.host.running.children import environment

BLAS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.mark.parametrize("given", [None, *BLAS])
def test_linear_algebra_has_one_thread_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    for name in BLAS:
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(given, "4")
    found = {name: value for name, value in environment().items() if name in BLAS}
    assert found == ({given: "4"} if given else {"OPENBLAS_NUM_THREADS": "1"})
