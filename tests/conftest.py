"""Tests are stricter than use: eight devices, checked shapes, no rank promotion, no warnings."""

import os
from pathlib import Path

# "cuda" for `-m gpu`; what a shell has in JAX_PLATFORMS does not count.
os.environ["JAX_PLATFORMS"] = os.environ.get("XMAE_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
# Every collective of every simulated device blocks a thread; with one thread a core, eight devices
# on two cores wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", "64")
# One cache for all workers of this run and the programs that they start.
CACHE = Path(__file__).parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["xmae_jax", "data_prep"], "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parents[1]


def pytest_configure(config):
    """Make warnings that our own modules cause errors; those of libraries stay warnings."""
    for module in ("xmae_jax", "data_prep", "configs"):
        config.addinivalue_line("filterwarnings", rf"error:::{module}\.")


@pytest.fixture(autouse=True)
def _no_run_is_left():
    """End what a test started and, by failing, did not wait for."""
    from tests import runs

    yield
    while runs.STARTED:
        runs.STARTED.pop().kill()


@pytest.fixture(scope="session")
def cxr() -> Path:
    """Return the folder of real films that stands beside a developer's checkout."""
    folder = ROOT.parent / "shared" / "cxr"
    if not folder.is_dir():
        pytest.skip("no real films: ../shared/cxr is not there")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Draw 40 small phantoms and put them into shards, by the commands that users run."""
    from data_prep import build, phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    films, output = str(folder / "films"), folder / "shards"
    sizes = ["--size", "96", "--workers", "1"]
    assert phantoms.main(["--output", films, "--count", "40", "--seed", "0", *sizes]) == 0
    # Always one key: ids, and with them the order of patients, are the same in each run.
    key = folder / "key"
    key.write_text("17" * 32 + "\n")
    key.chmod(0o600)
    argv = ["--input", films, "--output", str(output), *sizes, "--key", str(key)]
    assert build.main(argv) == 0
    return output


@pytest.fixture(scope="session")
def reference(shards, tmp_path_factory) -> Path:
    """Run 30 steps without a break; return the run directory."""
    from tests.runs import command, finish

    workdir = tmp_path_factory.mktemp("reference") / "run"
    code, out = finish(command(shards, workdir, "--config.total_steps=30"))
    assert code == 0, out
    return workdir
