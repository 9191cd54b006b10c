"""Shared by all tests: a check of the installed package, the wheels of upstream's releases, and torchrun."""

import os
import signal
import subprocess
import sys

import hypothesis
import pytest

from composer import base, record
from composer.adopt import ON_STOCK

FORK = record.load()
STOCK = bool(os.environ.get(ON_STOCK))
collect_ignore = [str(patch.tests) for patch in FORK.not_chosen + FORK.not_applicable]


hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config):
    """Stop with one sentence if speechbrain is not installed, or has another version than the one to test."""
    config.addinivalue_line("markers", "regression: this test fails on the stock release, as tests/fork/test_stock.py checks")
    config.addinivalue_line("markers", "torchrun: two processes, which take seconds to start")
    config.addinivalue_line("markers", "cuda: needs a GPU, and is skipped elsewhere")
    expected = FORK.base.version if STOCK else FORK.version
    try:
        from importlib.metadata import version

        import speechbrain

        found = speechbrain.__version__ if speechbrain.__file__ else version("speechbrain")
    except (ImportError, AttributeError):  # from the repo's root, `import speechbrain` finds the delta's bare folder
        found = "none"
    if found != expected:
        pytest.exit(
            f"The tests need an installed speechbrain {expected}, but found {found}: run `make .venv/installed`.", returncode=4
        )
    # hypothesis asks each module for its __file__. SpeechBrain's lazy modules then import their targets, which need k2 and
    # spacy.
    from speechbrain.utils.importutils import LazyModule

    for module in list(sys.modules.values()):
        if isinstance(module, LazyModule):
            module.__dict__.setdefault("__file__", None)


def pytest_collection_modifyitems(items):
    """Mark the tests that start torchrun; on the stock release, also mark the regression tests in the report."""
    import torch

    if STOCK:  # whose tests have to pass or fail, not to be skipped
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))
        if "torchrun" in getattr(item, "fixturenames", ()):
            item.add_marker("torchrun")
        if STOCK and item.get_closest_marker("regression"):
            item.user_properties.append(("regression", True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Let pytest-xdist send what a test printed, even file names that are not valid text."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """callable: Returns the path of the wheel of a base; all are in one folder."""
    folder = tmp_path_factory.mktemp("bases")

    def wheel(version):
        release = record.load(version=version).base
        path = folder / release.wheel
        if not path.exists():
            path.write_bytes(base.fetch(release))
        return path

    return wheel


@pytest.fixture(scope="session")
def stock_wheel(wheels):
    """pathlib.Path: The wheel of the stock release."""
    return wheels(FORK.base.version)


@pytest.fixture(scope="session")
def stock(stock_wheel):
    """pathlib.Path: The stock release, unpacked; if PYTHONPATH starts with it, `import speechbrain` finds it."""
    folder = stock_wheel.parent / "stock"
    base.unpack(stock_wheel.read_bytes(), folder)
    return folder


@pytest.fixture
def torchrun(tmp_path, request):
    """callable: Runs a script in two processes, in ``tmp_path``; returns the exit status and the output."""
    # On the stock release, the processes of a regression test may wait for each other forever
    limit = 30 if STOCK and request.node.get_closest_marker("regression") else 60

    def run(script, *arguments, seconds=limit, processes=2):
        (tmp_path / "train.py").write_text(script)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        process = subprocess.Popen(
            [*command, "train.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:  # one process is waiting for the other
            process.send_signal(signal.SIGTERM)  # the launcher then ends both
            said = process.communicate()[0]
        return process.returncode, said

    return run
