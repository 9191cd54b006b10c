"""The wheel contract: every front end builds the same wheel, and the installed files are those of the wheel."""

import base64
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools

from composer import backend, base, record, tree

FORK = record.load()
WHEEL = f"speechbrain-{FORK.version}-py3-none-any.whl"


INFO = f"speechbrain-{FORK.version}.dist-info"
# `python -m speechbrain.fork` without the rest of the package, which would import torch and may be damaged
ASK = f"""
import runpy, sys, types
sys.modules["speechbrain"] = types.SimpleNamespace(__version__={FORK.version!r})
runpy.run_path(sys.path[1] + "/speechbrain/fork.py", run_name="__main__")
"""


def copy_of_the_checkout(folder):
    """Copy what git would clone, with the changes that are not committed yet."""
    skip = shutil.ignore_patterns(".*", "__pycache__", "results", "dist")
    return Path(shutil.copytree(record.ROOT, folder, ignore=skip, symlinks=True))


@pytest.fixture
def checkout(tmp_path):
    """pathlib.Path: A copy of the checkout, in which no build may leave files."""
    folder = copy_of_the_checkout(tmp_path / "checkout")
    before = sorted(folder.rglob("*"))
    yield folder
    left = [path for path in folder.rglob("*") if path not in before and "__pycache__" not in path.parts]
    assert not left, f"the build left {left}"


@pytest.fixture(scope="module")
def environment(stock_wheel):
    return {**os.environ, base.LOCAL_WHEEL: str(stock_wheel), "PYTHONPATH": ""}


def run(command, environment, cwd, umask=0o022):
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def built(environment, tmp_path_factory):
    """bytes: The wheel as pip builds it from a checkout."""
    folder = tmp_path_factory.mktemp("built")
    source = copy_of_the_checkout(folder / "checkout")
    done = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source], environment, folder)
    assert done.returncode == 0, done.stdout
    return (folder / WHEEL).read_bytes()


PIP, UV = (
    (sys.executable, "-m", "pip", "wheel", "--no-deps", "-w"),
    (sys.executable, "-m", "uv", "build", "-q", "--python", sys.executable),
)


@pytest.mark.parametrize(
    "command, umask",
    [
        pytest.param([*PIP, "OUT", "--no-build-isolation", "."], 0o077, id="pip, no isolation, another umask"),
        pytest.param([sys.executable, "-m", "build", "-o", "OUT", "."], 0o027, id="build, by way of the sdist"),
        pytest.param([*UV, "-o", "OUT", "."], 0o022, id="uv, by way of the sdist"),
        pytest.param([*UV, "--wheel", "-o", "OUT", "."], 0o022, id="uv"),
    ],
)
def test_same_wheel(checkout, environment, tmp_path, built, command, umask):
    out = tmp_path / "out"
    done = run([out if word == "OUT" else word for word in command], environment, checkout, umask)
    assert done.returncode == 0, done.stdout
    assert (out / WHEEL).read_bytes() == built


@pytest.fixture(scope="module")
def hashes(wheels, built, tmp_path_factory):
    """Dict of str to str: The hash of the wheel on each base, as this Python builds it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = {wheels(version).parent for version in record.bases()}.pop()
        patch.setenv(base.LOCAL_WHEEL, str(folder))
        out = tmp_path_factory.mktemp("hashes")
        patch.chdir(record.ROOT)  # where a front end calls the hooks
        for version in record.bases():
            backend.build_wheel(str(out), {"base": version})
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    assert len(found) == len(record.bases()) and found[WHEEL] == hashlib.sha256(built).hexdigest()
    return found


def test_the_hashes(hashes, capsys):
    with capsys.disabled():
        print("".join(f"\n{sha256}  {name}" for name, sha256 in sorted(hashes.items())))


@pytest.fixture(scope="module")
def packing(environment, tmp_path_factory):
    """callable: Returns a folder with a release of setuptools, which works on each Python."""

    @functools.cache
    def install(version):
        folder = tmp_path_factory.mktemp("setuptools")
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, f"setuptools=={version}"]
        done = run(command, environment, folder)
        assert done.returncode == 0, done.stdout
        return folder

    return install


@functools.cache
def interpreter(version):
    """Find a Python on the path or among pyenv's; skips the test if there is none that runs."""
    there = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in [shutil.which(f"python{version}"), *there]:
        if found and run([found, "-m", "pip", "--version"], os.environ, "/").returncode == 0:
            return found
    pytest.skip(f"no python{version} with pip on this machine")


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_same_wheels_on_each_python(checkout, environment, wheels, packing, tmp_path, hashes, python):
    code = """
import sys; from composer.backend import build_wheel
out, *bases = sys.argv[1:]  # setuptools puts arguments of its own there
for base in bases: build_wheel(out, {"base": base})
"""
    path = str(packing(setuptools.__version__))
    bases = {**environment, base.LOCAL_WHEEL: str(wheels(record.bases()[0]).parent), "PYTHONPATH": path}
    done = run([interpreter(python), "-B", "-c", code, tmp_path / "out", *record.bases()], bases, checkout, 0o077)
    assert done.returncode == 0, done.stdout
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()} == hashes


@pytest.mark.parametrize("python", ["3.6", "3.8", "3.9"])
def test_an_old_python_gets_a_sentence(checkout, environment, tmp_path, python):
    for code in ("import composer.backend", "import runpy; runpy.run_path('setup.py')"):
        done = run([interpreter(python), "-B", "-c", code], environment, checkout)
        assert done.returncode == 1 and done.stdout.startswith(f"This fork needs Python 3.10 or later, and this is {python}.")


@pytest.mark.parametrize("version", ["77.0.3", "80.9.0"])
def test_same_wheel_with_other_setuptools(checkout, environment, packing, tmp_path, built, version):
    done = run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path],
        {**environment, "PYTHONPATH": str(packing(version))},
        checkout,
    )
    assert done.returncode == 0 and (tmp_path / WHEEL).read_bytes() == built, done.stdout


def test_setup_py_answers(checkout, environment):
    done = run([sys.executable, "setup.py", "--version"], {**environment, base.LOCAL_WHEEL: "/nowhere"}, checkout)
    assert done.returncode == 0 and done.stdout.split() == [FORK.version], "without the base"


@pytest.mark.parametrize("command", ["install", "develop", "editable_wheel", "bdist_egg", "build"])
def test_setup_py_does_not_install(checkout, environment, command):
    done = run([sys.executable, "setup.py", command], environment, checkout)
    assert done.returncode == 1 and done.stdout.startswith("setup.py builds wheels and sdists only: run `pip install .`")


def test_the_sdist_builds_the_same_wheel_and_leaves_requirements_open(checkout, environment, tmp_path, built):
    environment = {**environment, record.WANTED: "", record.CHOSEN: ""}
    choice = {record.WANTED: "1.0.3", record.CHOSEN: "none"}  # an sdist does not keep this choice
    done = run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], {**environment, **choice}, checkout)
    assert done.returncode == 0, done.stdout
    (packed,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(packed, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert "Metadata-Version: 2.1\n" in (source / "PKG-INFO").read_text()
    done = run([*PIP, tmp_path, "--no-build-isolation", source], environment, tmp_path)
    assert done.returncode == 0 and (tmp_path / WHEEL).read_bytes() == built, done.stdout


def test_installs_from_git(environment, tmp_path):
    if not (record.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = run([*PIP, tmp_path, f"git+file://{record.ROOT}"], environment, tmp_path)
    assert done.returncode == 0 and (tmp_path / WHEEL).exists(), done.stdout


@pytest.mark.parametrize(
    "command, way_out",
    [
        pytest.param(PIP, {"PIP_NO_CACHE_DIR": "1"}, id="pip"),
        pytest.param(
            [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--no-deps", "--target"], {}, id="uv"
        ),
    ],
)
def test_options_of_the_build_are_not_served_from_a_cache(environment, wheels, tmp_path, command, way_out):
    repo = copy_of_the_checkout(tmp_path / "repo")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=repo, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, stdout=subprocess.PIPE, text=True).stdout.strip()
    caches = {"PIP_CACHE_DIR": str(tmp_path / "pip"), "UV_CACHE_DIR": str(tmp_path / "uv")}
    wheels("1.0.3")
    folder = str(wheels(FORK.base.version).parent)

    def built(*options, **more):
        out = tmp_path / "-".join(["out", *options, *more]).replace("=", "")
        requirement = f"speechbrain @ git+file://localhost{repo}@{commit}"
        words = [word for option in options for word in ("--config-settings", option)]
        done = run([*command, out, *words, requirement], {**environment, **caches, base.LOCAL_WHEEL: folder, **more}, tmp_path)
        assert done.returncode == 0, done.stdout
        return next(path.name for path in out.glob("speechbrain-*")).split("-")[1].removesuffix(".dist")

    assert built() == FORK.version
    options = ("base=1.0.3", "patches=none")
    if way_out:
        assert built(*options) == FORK.version, "this installer no longer ignores options of the build in its cache"
    assert built(*options, **way_out) == f"1.0.3+pr2537.{FORK.revision}.none"


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_editable_install_is_refused_and_breaks_nothing(checkout, environment, tmp_path, built, installer):
    (tmp_path / WHEEL).write_bytes(built)
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install"]
    if installer == "uv":
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", python]
    assert run([*command, "--no-deps", tmp_path / WHEEL], environment, tmp_path).returncode == 0
    done = run([*command, "--no-deps", "-e", "."], environment, checkout)
    assert done.returncode != 0 and "cannot be installed with -e" in done.stdout and "composer/backend.py" not in done.stdout
    assert "Traceback" not in done.stdout
    version = run(
        [python, "-c", "import importlib.metadata as m; print(m.version('speechbrain'))"], environment, tmp_path
    ).stdout
    assert version.strip() == FORK.version


def test_a_refusal_is_a_sentence_and_not_a_traceback(checkout, environment, tmp_path):
    done = run([*PIP, tmp_path, "."], {**environment, base.LOCAL_WHEEL: "/nowhere.whl"}, checkout)
    assert done.returncode != 0 and "SPEECHBRAIN_BASE_WHEEL names /nowhere.whl, which cannot be read" in done.stdout
    assert "Traceback" not in done.stdout and not list(tmp_path.glob("*.whl"))


def test_the_wheel_holds_the_base_but_for_what_the_delta_touches(built, stock_wheel, tmp_path):
    (tmp_path / WHEEL).write_bytes(built)
    with zipfile.ZipFile(tmp_path / WHEEL) as archive:
        ours = {name: archive.read(name) for name in archive.namelist()}
        assert {info.external_attr >> 16 for info in archive.infolist() if not info.filename.endswith("RECORD")} == {0o100644}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}, "zlibs differ"
    theirs = base.members(stock_wheel.read_bytes())
    touched = {path for patch in FORK.patches for path in patch.delta} | {tree.VERSION_FILE, tree.PATCHES_FILE, tree.FORK_FILE}
    assert {n: d for n, d in ours.items() if n.startswith("speechbrain/") and n not in touched} == {
        n: d for n, d in theirs.items() if n.startswith("speechbrain/") and n not in touched
    }
    assert {name.split("/")[0] for name in ours} == {"speechbrain", f"speechbrain-{FORK.version}.dist-info"}


def test_the_installed_package_is_the_composed_one(stock_wheel):
    """Each file that RECORD names is there with its hash, and is what base and delta give."""
    installed = importlib.metadata.distribution("speechbrain")
    files = {str(file): file for file in installed.files}
    for file in files.values():
        if file.hash:
            found = base64.urlsafe_b64encode(hashlib.sha256(file.read_binary()).digest()).rstrip(b"=").decode()
            assert found == file.hash.value, file
    package = tree.compose(FORK, base.members(stock_wheel.read_bytes()), record.lock())
    stale = [path for path in package if path not in files or files[path].read_binary() != package[path]]
    assert not stale, f"another build is installed, run `make test`: {stale}"


@pytest.mark.parametrize(
    "spoil, status, message",
    [
        (lambda package: None, 0, "All files are as they were built."),
        (lambda package: (package / "core.py").write_text(""), 1, "Not as they were built: speechbrain/core.py (changed)"),
        (lambda package: (package / "nnet/RNN.py").unlink(), 1, "Not as they were built: speechbrain/nnet/RNN.py (missing)"),
        (lambda package: (package / "patches.txt").unlink(), 1, "Not as they were built: speechbrain/patches.txt (missing)"),
        (lambda package: (package.parent / INFO / "RECORD").unlink(), 1, "Not as they were built: RECORD (missing)"),
        (lambda package: shutil.rmtree(package.parent / INFO), 1, "fork.py (imported, but not installed)"),
    ],
    ids=["as built", "changed", "missing", "no patches.txt", "no RECORD", "not the installed one"],
)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_fork_says_what_is_installed(built, tmp_path, spoil, status, message, python):
    base.unpack(built, tmp_path)
    spoil(tmp_path / "speechbrain")
    done = run([interpreter(python), "-c", ASK], {**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path)
    assert done.returncode == status and done.stdout.splitlines()[-1].endswith(message), done.stdout
    assert done.stdout.startswith(f"speechbrain {FORK.version}: base {FORK.base.version}, label {FORK.label}, revision ")
    listed = (
        FORK.listing.splitlines() if (tmp_path / "speechbrain/patches.txt").exists() else ["unknown, patches.txt is missing"]
    )
    assert all(f"\n    {line}\n" in done.stdout for line in listed)


def test_the_metadata():
    installed = importlib.metadata.distribution("speechbrain")
    assert installed.version == FORK.version == (Path(installed.locate_file(tree.VERSION_FILE)).read_text().strip())
    assert set(FORK.base.requires) <= set(installed.requires)
    assert set(installed.metadata.get_all("License-File")) == {"LICENSE", "NOTICE"}
    names = {str(file).rpartition("dist-info/")[2] for file in installed.files}
    assert {"licenses/LICENSE", "licenses/NOTICE"} <= names
