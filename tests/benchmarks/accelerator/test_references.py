"""Test that processes of references never touch an accelerator."""

import jax
import pytest

from benchmarks.accelerator.references import processes


@pytest.mark.slow
def test_references_run_on_the_cpu_whatever_platform_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with processes() as workers:
        assert workers.submit(jax.default_backend).result(timeout=60) == "cpu"
