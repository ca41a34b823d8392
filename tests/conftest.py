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
        if jax.__version_info__ < (0, 11):  # later versions compile fast by themselves
            os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Feature spaces and programs are cached for the session, away from the user's own cache."""
    patch, own = pytest.MonkeyPatch(), tmp_path_factory.getbasetemp()
    workers = "PYTEST_XDIST_WORKER" in os.environ  # which share one
    cache = (own.parent if workers else own) / "cache"
    cache.mkdir(exist_ok=True)
    patch.setenv("JAXGEN_CACHE", str(cache))
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    yield
    patch.undo()


@pytest.fixture
def key():
    return jax.random.key(0)


# Seconds of test time by part of the suite, on two cores that add ten million numbers in Python in
# 0.4 seconds: twelve minutes by the clock.
BUDGET = {
    "data": 20, "diffusion": 360, "evaluation": 40, "experiments": 300, "losses": 130,
    "models": 200, "runner": 250, "systems": 200, "training": 60, "others": 80,
}  # fmt: skip


def pytest_terminal_summary(terminalreporter):
    """The time of each part, beside its budget."""
    seconds = dict.fromkeys(BUDGET, 0.0)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                part = report.nodeid.split("/")[1]
                seconds[part if part in BUDGET else "others"] += report.duration
    for part, spent in seconds.items():
        if spent:
            terminalreporter.write_line(f"{part:<12} {spent:5.0f} s of {BUDGET[part]}")
