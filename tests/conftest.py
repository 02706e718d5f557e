"""Eight virtual CPU devices, a strict JAX for the tests of the norms, and a small comparison for those of the study."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from normlab import norms
from normlab.study.training.compilation_cache import use_cache
from normlab.study.worker.strategy import THREADS_PER_DEVICE, environment
from tests.support.registered import ALL  # noqa: F401  (first of all)
from tests.support.toys import TOY

RARE = frozenset(norms.names()[norms.names().index("continual") + 1 :])
"""Norms whose long tests run with the slow ones."""

LONG = {
    "test_rounds_to_the_float64_reference": "float16",  # and bfloat16
    "test_every_norm_on_every_mesh_is_that_of_one_device": "",
    "test_every_norm_trains_a_residual_network": "",
    "test_models_under_vmap_are_never_mixed": "",
    "test_taylor_mode_is_forward_mode_twice": "",
}
"""Tests of every norm that take long, with a part of the identifiers of those that do."""

collect_ignore = ["support/record_states.py"]  # imports what the extra `peers` installs

ROAMING = ("test_the_code_of_a_page_runs", "test_fifty_kills")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell, and in all that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 8)  # unlike XLA_FLAGS, not inherited by the processes that studies start
with environment({"PJRT_NPROC": str(THREADS_PER_DEVICE * 8)}):
    jax.devices()  # from here on nothing changes their number, a study that asks for fewer neither
    use_cache()  # most of the time of the tests is XLA's, which compiles much of it again and again


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give all tests of a file to one process, which makes what they share once; long tests that share nothing roam."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if any(name in nodeid for name in ROAMING) else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark long tests of rare norms as slow."""
    for item in items:
        name, _, identifier = item.name.partition("[")
        parameters: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        norm = str(parameters.get("norm", parameters.get("name", ""))).partition(":")[0]
        if norm in RARE and name in LONG and LONG[name] in identifier:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Unload what was compiled: each program maps some memory, and Linux ends a process with 65,530 maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def strict() -> Iterator[None]:
    """Let no dtype or rank be promoted unseen."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The file of a comparison whose runs take no time."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path
