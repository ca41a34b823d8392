"""Every test runs on eight simulated CPU devices, with silent broadcasting of ranks refused."""

import os

import jax

from jaxgen.training.devices import tune_cpu

tune_cpu()  # as the experiments do, so that a run in a process of its own computes the same
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest  # noqa: E402


def pytest_configure(config):
    """What runs a few times is compiled fast; slow tests measure, and are compiled well."""
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Feature spaces and programs are cached for the session, away from the user's own cache."""
    patch, cache = pytest.MonkeyPatch(), tmp_path_factory.mktemp("cache")
    patch.setenv("JAXGEN_CACHE", str(cache))
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    yield
    patch.undo()


@pytest.fixture
def key():
    return jax.random.key(0)
