"""What all tests share: the installed package they run on, and the stock release beside it."""

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
    """Stop with one sentence where the wrong package, or none, would be tested."""
    config.addinivalue_line("markers", "regression: this row fails on the stock release, which the suite checks")
    config.addinivalue_line("markers", "torchrun: two processes, which take seconds to start")
    wanted = FORK.base.version if STOCK else FORK.version
    try:
        from importlib.metadata import version

        import speechbrain

        found = speechbrain.__version__ if speechbrain.__file__ else version("speechbrain")
    except (ImportError, AttributeError):  # from the repo's root, `import speechbrain` finds the delta's bare folder
        found = "none"
    if found != wanted:
        pytest.exit(f"The tests need an installed speechbrain {wanted}, but found {found}: run `make test`.", returncode=4)
    # hypothesis asks each module for its __file__. SpeechBrain's redirects of old names then import their targets, which
    # need k2 and spacy.
    from speechbrain.utils.importutils import LazyModule

    for module in list(sys.modules.values()):
        if isinstance(module, LazyModule):
            module.__dict__.setdefault("__file__", None)


def pytest_collection_modifyitems(items):
    """Mark the tests that start torchrun; and have the report on the stock release say which rows are regression rows."""
    for item in items:
        if "torchrun" in getattr(item, "fixturenames", ()):
            item.add_marker("torchrun")
        if STOCK and item.get_closest_marker("regression"):
            item.user_properties.append(("regression", True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Let pytest-xdist send what a test printed, file names that are not valid text included."""
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
    """callable: Runs a script in two processes on the CPU, in ``tmp_path``; returns the exit status and the output."""
    # On the stock release the processes of a regression row may wait for each other for ever
    limit = 30 if STOCK and request.node.get_closest_marker("regression") else 60

    def run(script, *arguments, seconds=limit):
        (tmp_path / "train.py").write_text(script)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:  # one process is waiting for the other
            process.send_signal(signal.SIGTERM)  # which makes the launcher end both
            said = process.communicate()[0]
        return process.returncode, said

    return run
