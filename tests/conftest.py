"""What several test files share: the embedded demo model, loaded once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

from mlx_mixtral import cpu
from mlx_mixtral.loading import LanguageModel, load

# A shell starts background jobs deaf to Ctrl-C, and those hand it on to what tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `make fuzz` takes the second: the same tests, for a long while.
settings.register_profile("quick", deadline=None)
settings.register_profile(
    "long", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck)
)
settings.load_profile("quick")


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``mixtral-mlx`` in processes of their own, which end with the test."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*arguments: object, env: Mapping[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_mixtral", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def demo() -> LanguageModel:
    return load("demo")


@pytest.fixture(scope="session")
def small(demo: LanguageModel) -> LanguageModel:
    """The demo with a context of 160 tokens, which is soon full."""
    return replace(demo, config=replace(demo.config, max_position_embeddings=160))


@pytest.fixture(autouse=True, scope="session")
def no_installed_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests see no model that the person running them has installed."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTRAL_MLX_HOME", str(home))
        yield


@pytest.fixture(scope="module")
def kept_packed() -> Iterator[None]:
    """Models of a test's size stay packed without a GPU too, as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "UNPACKED_AT_MOST", -1)
        yield
