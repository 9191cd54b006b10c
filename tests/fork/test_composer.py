"""The composer: what it refuses, what it accepts, and that its outputs agree with the lock."""

import ast
import dataclasses
import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from composer import Refusal, __main__, backend, base, lock, metadata, record, tree

FORK = record.load(version="1.1.2", patches=" ".join(p.name for p in record.all_patches()))  # whatever the environment says
LOGGER = "speechbrain/utils/logger.py"
# The last patch that only adds files: an example for what holds for any patch
LAST = [patch for patch in FORK.patches[1:] if not tree.replaces(record.lock(), patch)][-1]
NEW_FILE = max(LAST.delta)
FORMATTER = f"{LOGGER}::format_order_of_magnitude"


@pytest.fixture(scope="module")
def upstream(wheels):
    return base.members(wheels("1.1.2").read_bytes())


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(record.ROOT)  # where a front end calls the hooks


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def edited(edit, name="PR_2537"):
    """The fork with another delta of one patch."""
    patch = record.find(name, FORK.patches)
    other = dataclasses.replace(patch)
    other.__dict__["delta"] = edit(patch.delta)
    return dataclasses.replace(FORK, patches=tuple(other if p is patch else p for p in FORK.patches))


@pytest.mark.parametrize(
    "edit, message",
    [
        pytest.param(lambda d: {**d, "speechbrain/utils/loger.py": b"X = 1\n"}, "loger.py is new", id="mistyped path"),
        pytest.param(
            lambda d: {**d, LOGGER: d[LOGGER] + b"\n\ndef format_ordr(): pass\n"},
            "format_ordr in .* is new",
            id="mistyped name",
        ),
        pytest.param(
            lambda d: {**d, LOGGER: d[LOGGER] + b"\n\nORDERS_ABBREV = 1\n"}, "ORDERS_ABBREV is there twice", id="twice"
        ),
        pytest.param(
            lambda d: {**d, LOGGER: d[LOGGER].replace(b"def _as", b"def get_logger(): pass\n\n\ndef _as", 1)},
            "get_logger in .* replaces a definition of speechbrain 1.1.2, and composer/lock.toml does not have it",
            id="not locked",
        ),
        pytest.param(lambda d: {**d, "speechbrain/new.py": b"def ("}, "new.py cannot be read as Python", id="not Python"),
        pytest.param(
            lambda d: {**d, "speechbrain/new.py": b"x = " + b"-" * 99999 + b"1"}, "new.py cannot be read", id="absurdly deep"
        ),
        pytest.param(lambda d: {**d, LOGGER: b"x = " + b"-" * 99999 + b"1"}, "logger.py cannot be read", id="deep, grafted"),
        pytest.param(lambda d: {**d, "speechbrain/core.py": b"import os\n"}, "core.py defines nothing", id="defines nothing"),
        pytest.param(lambda d: {**d, "speechbrain/version.txt": b"2"}, "not Python: it cannot be changed", id="data"),
        pytest.param(
            lambda d: {**d, "speechbrain/fork.py": b"x = 1"}, "the build itself writes speechbrain/fork.py", id="fork.py"
        ),
        pytest.param(
            lambda d: {**d, "speechbrain/Core.py": b"x = 1"},
            "Core.py and .* are the same if the file system ignores case",
            id="case",
        ),
        pytest.param(
            lambda d: {**d, "speechbrain/Utils/x.py": b"x = 1"},
            "Utils and .* are the same if the file system ignores case",
            id="folder's case",
        ),
        pytest.param(lambda d: {**d, "speechbrain/core/__init__.py": b""}, "hides upstream's speechbrain/core.py", id="hides"),
        pytest.param(lambda d: {**d, "speechbrain/utils.py": b""}, "hides upstream's speechbrain/utils", id="is hidden"),
        pytest.param(lambda d: {**d, "speechbrain/core.py/x.txt": b""}, "hides upstream's speechbrain/core.py", id="in a file"),
        pytest.param(
            lambda d: {**d, NEW_FILE: b"x = 1"},
            f"PR_2537 and {LAST.name} both define {re.escape(NEW_FILE)}",
            id="two patches, a file",
        ),
        pytest.param(
            lambda d: {**d, "speechbrain/utils/distributed.py": b"def ddp_init_group(run_opts): pass"},
            "PR_2537 and 0003-torchrun-on-cpu both define ddp_init_group",
            id="two patches, a definition",
        ),
        pytest.param(lambda d: without(d, "speechbrain/core.py"), "but not in the delta: restore it", id="not in the delta"),
    ],
)
def test_composing_refuses_a_delta_that_differs_from_the_lock(upstream, edit, message):
    with pytest.raises(Refusal, match=message):
        tree.compose(edited(edit), upstream, record.lock())


@pytest.mark.parametrize(
    "entry, value, message",
    [
        (FORMATTER, "0" * 16, "replaces the definition 14346c675bae6ce2 on speechbrain 1.1.2, but .* the definition 0000"),
        (f"{LOGGER}::_as_builtin", "0" * 16, "is new on speechbrain 1.1.2, but in composer/lock.toml it replaces"),
        (FORMATTER, tree.NEW, "replaces the definition 14346c675bae6ce2 on .* in composer/lock.toml it is new"),
    ],
    ids=["another fingerprint", "upstream does not have it", "upstream has it now"],
)
def test_composing_refuses_a_base_that_differs_from_the_lock(upstream, entry, value, message):
    locked = record.lock()
    locked["PR_2537"][entry] = {"1.1.2": value}
    with pytest.raises(Refusal, match=message):
        tree.compose(FORK, upstream, locked)


def test_a_patch_whose_folder_is_gone_is_named(upstream):
    fork = dataclasses.replace(FORK, patches=FORK.patches[:3])
    with pytest.raises(
        Refusal, match=r"0003-torchrun-on-cpu is in composer/lock\.toml, but its folder is gone: restore it, or run"
    ):
        tree.compose(fork, upstream, record.lock())


def spoiled(tmp_path, stock_wheel, what):
    path = tmp_path / "base.whl"
    data = stock_wheel.read_bytes()
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes({"truncated": data[:-9], "altered": data[:-1] + b"!", "empty": b""}[what])
    return path


@pytest.mark.parametrize(
    "what, message",
    [
        ("missing", "cannot be read .No such file"),
        ("folder", "cannot be read .No such file"),
        ("truncated", "its sha256 is"),
        ("altered", "its sha256 is"),
        ("empty", "its sha256 is"),
    ],
)
def test_a_local_wheel_must_be_the_pinned_one(tmp_path, stock_wheel, monkeypatch, what, message):
    path = spoiled(tmp_path, stock_wheel, what)
    monkeypatch.setenv(base.LOCAL_WHEEL, str(path))
    with pytest.raises(Refusal, match=message) as refusal:
        base.fetch(FORK.base)
    assert str(path) in str(refusal.value) and FORK.base.wheel in str(refusal.value)


def test_no_network_names_the_way_out(monkeypatch):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        Refusal, match=rf"could not be downloaded: ERROR: .*: check the network, .* or set {base.LOCAL_WHEEL} to"
    ):
        base.fetch(FORK.base)


@pytest.mark.parametrize(
    "printed, message",
    [
        ("/x/python: No module named pip", "its environment has no pip: install pip there"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "temporary folder is full"),
        ("WARNING: Retrying after 'NewConnectionError(...)'\nERROR: No matching distribution", "neither the index nor a proxy"),
        ("WARNING: Retrying after 'ProxyError(...)'\nERROR: No matching distribution", "the proxy does not answer"),
    ],
)
def test_a_failed_download_gets_a_sentence_of_its_own(printed, message):
    assert message in base._failure(FORK.base, printed)


def test_the_users_constraints_do_not_reach_the_inner_pip(monkeypatch, tmp_path):
    (tmp_path / "constraints.txt").write_text(f"speechbrain=={FORK.version}\n")
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    assert hashlib.sha256(base.fetch(FORK.base)).hexdigest() == FORK.base.sha256


@pytest.mark.parametrize("setting", ["PIP_REQUIRE_HASHES=1", "PIP_NO_BINARY=:all:", "PIP_NO_BINARY=speechbrain"])
def test_pip_settings_do_not_change_what_is_fetched(monkeypatch, setting):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    monkeypatch.setenv(*setting.split("="))
    assert hashlib.sha256(base.fetch(FORK.base)).hexdigest() == FORK.base.sha256


def test_another_hash_on_the_index_is_refused(monkeypatch):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    with pytest.raises(Refusal, match=r"could not be downloaded: the index serves another file .*DO NOT MATCH THE HASHES"):
        base.fetch(dataclasses.replace(FORK.base, sha256="0" * 64))


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "speechbrain/../../evil.py", "C:/evil.py", "..\\evil.py"])
def test_a_member_that_leaves_the_tree_is_refused(name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, "")
    with pytest.raises(Refusal, match="would leave the package tree"):
        base.members(out.getvalue())


def damaged(how):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("speechbrain/x.py", "x = 1\n" * 999)
        if how == "twice":
            archive.writestr("speechbrain/x.py", "x = 2")
    data = bytearray(out.getvalue())
    if how == "corrupt":
        data[60:70] = b"\xff" * 10
    return b"PK\x03\x04 not more" if how == "not a zip file" else bytes(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how, message", [("not a zip file", "is damaged"), ("corrupt", "is damaged"), ("twice", "x.py twice")])
def test_a_damaged_wheel_is_refused(how, message):
    with pytest.raises(Refusal, match=message):
        base.members(damaged(how))


@pytest.mark.parametrize("name", ["METADATA", "licenses/LICENSE"])
def test_a_wheel_without_metadata_or_licence_is_refused(upstream, name):
    with pytest.raises(Refusal, match="has no METADATA or no LICENSE"):
        metadata.dist_info(FORK, without(upstream, f"speechbrain-1.1.2.dist-info/{name}"))


@pytest.fixture
def repo(tmp_path, wheels, monkeypatch):
    """pathlib.Path: A copy of what the lock is made from, with two bases."""
    monkeypatch.setenv(base.LOCAL_WHEEL, str({wheels(version).parent for version in record.bases()}.pop()))
    for name in ("speechbrain", "patches", "composer"):
        shutil.copytree(record.ROOT / name, tmp_path / "repo" / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    for name in ("pyproject.toml", "PR_2537.md"):
        shutil.copy(record.ROOT / name, tmp_path / "repo")
    lock.renew(tmp_path / "repo", {version: record.lock()["bases"][version] for version in ("1.0.3", "1.1.2")})
    return tmp_path / "repo"


def test_the_lock_is_current(repo):
    before = (record.ROOT / record.LOCK).read_bytes()
    assert lock.renew(repo, record.lock()["bases"]) and (repo / record.LOCK).read_bytes() != before, "its revision is higher"
    found, digest = lock.look(record.lock()["bases"], record.ROOT)
    assert digest == record.lock()["digest"], "run `python -m composer lock`"
    for version in record.bases():
        entries = {patch: {e: v[version] for e, v in values.items() if version in v} for patch, values in found.items()}
        assert entries == tree.locked_entries(record.lock(), version)


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MISTYPED = "new       PR_2537  speechbrain/utils/loger.py"


@pytest.mark.parametrize(
    "edit, lines",
    [
        pytest.param(lambda repo: replace(repo / LOGGER, "1000.0", "1000.0k"), [], id="a comment of the delta"),
        pytest.param(lambda repo: replace(repo / "pyproject.toml", '"requests",', '"requests>=2",'), [], id="a requirement"),
        pytest.param(
            lambda repo: replace(repo / LAST.page, "1.0.1 to 1.1.2", "1.0.3 to 1.0.3"),
            [f"new       {LAST.name}  {path}" for path in LAST.delta],
            id="the bases of a patch",
        ),
        pytest.param(
            lambda repo: (repo / "speechbrain/utils/loger.py").write_text("X = 1\n"), [MISTYPED], id="a mistyped path"
        ),
        pytest.param(
            lambda repo: replace(repo / LOGGER, "def _as_builtin", "def get_logger(): pass\n\n\ndef _as_builtin"),
            [f"replaced  PR_2537  {LOGGER}::get_logger"],
            id="one more definition",
        ),
        pytest.param(
            lambda repo: shutil.rmtree(repo / LAST.page.removesuffix("/README.md")),
            [f"gone      {LAST.name}  {path}" for path in LAST.delta],
            id="a patch deleted",
        ),
    ],
)
def test_the_lock_is_renewed(repo, edit, lines):
    before = record.lock(repo)
    assert not lock.stale(repo) and not lock.renew(repo) and record.lock(repo) == before
    edit(repo)
    assert lock.stale(repo)
    assert lock.renew(repo) == lines
    assert record.lock(repo)["revision"] == before["revision"] + 1 and not lock.stale(repo)
    assert (
        len((repo / record.LOCK).read_text().splitlines())
        == sum(len(entries) + 2 for name, entries in record.lock(repo).items() if isinstance(entries, dict)) + 3
    ), "a line each"


def test_a_stale_lock_names_the_command(monkeypatch):
    monkeypatch.setattr(record, "bases", list)
    monkeypatch.setattr(lock, "stale", lambda: True)
    with pytest.raises(
        Refusal,
        match=rf"lock is stale: .* after revision {FORK.revision}\. To raise the revision, run `python -m composer lock`",
    ):
        __main__.check([])


@functools.cache
def definitions(source):
    """What a module and its classes define: the tree of each by its name, without the docstring that a delta may leave out."""
    found, module = {}, ast.parse(source)
    for scope in [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]:
        prefix = "" if scope is module else f"{scope.name}."
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                del node.body[0]
            targets = [getattr(node, "name", None), *(getattr(t, "id", None) for t in getattr(node, "targets", ()))]
            found.update({prefix + name: ast.dump(node) for name in targets if name})
    return found


@pytest.mark.parametrize("version", record.bases())
def test_each_base_gets_the_patches_that_apply_and_no_others(wheels, version):
    fork = record.load(version=version, patches="")
    upstream = base.members(wheels(version).read_bytes())
    package = tree.compose(fork, upstream, record.lock())
    assert {path.split("/")[0] for path in package} == {"speechbrain"}
    assert package[tree.PATCHES_FILE].decode() == fork.listing and fork.listing.startswith("PR_2537: ")
    changed = set()
    for name, entries in record.lock().items():
        patch = isinstance(entries, dict) and name != "bases" and record.find(name, record.all_patches())
        for entry in entries if patch else ():
            path, _, name = entry.partition("::")
            there = definitions(package[path]).get(name) if name else package.get(path)
            mine = definitions(patch.delta[path])[name] if name else patch.delta[path]
            assert (there == mine) is (patch in fork.patches), entry
            changed |= {path} if patch in fork.patches else set()
    untouched = {path for path in package if package[path] == upstream.get(path)}
    assert not untouched & changed


NUMBERS = [patch.number for patch in FORK.patches[1:]]
FREE = [patch for patch in FORK.patches[1:] if not patch.needs]


@pytest.mark.parametrize(
    "patches, ending, chosen",
    [
        ("none", ".none", []),
        ("0002 0005", ".p0002.p0005", ["0002", "0005"]),
        (f"{FREE[-1].number},{FREE[-2].name}", f".p{FREE[-2].number}.p{FREE[-1].number}", [p.number for p in FREE[-2:]]),
        (" ".join(NUMBERS), f".{FORK.revision}", NUMBERS),
        (None, f".{FORK.revision}", NUMBERS),
    ],
)
def test_a_build_may_take_fewer_patches(upstream, monkeypatch, patches, ending, chosen):
    monkeypatch.delenv(record.CHOSEN, raising=False)
    fork = record.load(version="1.1.2", patches=patches)
    left_out = [number for number in NUMBERS if number not in chosen]
    assert fork.version.endswith(ending) and [patch.number for patch in fork.not_chosen] == left_out
    package = tree.compose(fork, upstream, record.lock())
    listed = package[tree.PATCHES_FILE].decode()
    assert [line.split("-")[0] for line in listed.splitlines() if line.startswith("(left")] == [
        f"(left out) {n}" for n in left_out
    ]
    scripts = [n for n in ("preflight", "watch") if f"speechbrain/{n}/__main__.py" in package]
    entry_points = metadata.dist_info(fork, upstream).get("entry_points.txt", b"").decode()
    assert [line.split(" ")[0] for line in entry_points.splitlines()[1:]] == [f"speechbrain-{n}" for n in scripts]


@pytest.mark.parametrize(
    "version, patches, message",
    [
        ("1.1.2", "0005", "0005-load-the-right-model needs 0002, which is left out: add it"),
        ("1.0.3", "0002 0005", "0005-load-the-right-model does not apply to 1.0.3, but to 1.1.0 to 1.1.2"),
        ("1.1.2", "0099", "There is no patch 0099: choose from PR_2537, 0001"),
        ("1.1.2", "none 0001", "There is no patch none"),
    ],
)
def test_a_choice_of_patches_that_cannot_be_is_refused(version, patches, message):
    with pytest.raises(Refusal, match=message):
        record.load(version=version, patches=patches)


def test_a_wheel_of_another_base(wheels, monkeypatch, tmp_path):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.1.0").parent))
    monkeypatch.setenv(record.WANTED, "1.1.0")
    with zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path))) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if not name.startswith("speechbrain/")}
    info = f"speechbrain-1.1.0+pr2537.{FORK.revision}.dist-info"
    assert {name.rpartition("/")[0] for name in files} == {info, f"{info}/licenses"}, (
        "this release drops docs/, recipes/ and more"
    )
    assert files[f"{info}/top_level.txt"] == "speechbrain\n"
    assert "\nRequires-Python: >=3.10\n" in files[f"{info}/METADATA"], "the delta needs it on every base"
    expected = {*record.load().base.requires, "torchaudio>=2.1.0"}
    assert expected <= set(re.findall("Requires-Dist: (.*)", files[f"{info}/METADATA"]))


def test_config_settings_name_a_base_and_patches_too(wheels, monkeypatch, tmp_path):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.0.1").parent))
    built = f"speechbrain-1.0.1+pr2537.{FORK.revision}.none-py3-none-any.whl"
    assert backend.build_wheel(str(tmp_path), {"base": "1.0.1", "patches": "none"}) == built
    with pytest.raises(Refusal, match="no option -C bass: this build takes -C base="):
        backend.build_wheel(str(tmp_path), {"bass": "1.0.1"})


def test_the_metadata_hook_answers_as_the_wheel_does_and_leaves_it_the_base(wheels, monkeypatch, tmp_path):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.1.1").parent))
    name = backend.prepare_metadata_for_build_wheel(str(tmp_path), {"base": "1.1.1"})
    monkeypatch.setenv(base.LOCAL_WHEEL, "/nowhere")
    wheel = backend.build_wheel(str(tmp_path), {"base": "1.1.1"}, str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        inside = {path: archive.read(path) for path in archive.namelist() if path.startswith(name)}
    for path in (tmp_path / name).rglob("*"):
        if path.is_file():
            assert inside.pop(path.relative_to(tmp_path).as_posix()) == path.read_bytes()
    assert sorted(inside) == [f"{name}/RECORD", f"{name}/WHEEL"]


def test_a_base_that_is_not_pinned_is_refused(monkeypatch):
    monkeypatch.setenv(record.WANTED, "1.0.4")
    with pytest.raises(Refusal, match=r"no pinned base 1\.0\.4: choose one of 1\.0\.1, .*1\.1\.2"):
        record.load()


def test_the_notice_names_every_changed_file(upstream):
    package = tree.compose(FORK, upstream, record.lock())
    changed = {path for path in upstream if package.get(path, upstream[path]) != upstream[path]}
    notice = (record.ROOT / "NOTICE").read_text()
    assert not {path for path in changed if path not in notice}
    for path in changed - {tree.VERSION_FILE}:
        assert package[path].startswith(b"# Changed by the pr2537 fork of SpeechBrain: "), path


def test_the_diff_turns_the_base_into_the_fork(upstream, wheels, tmp_path):
    base.unpack(wheels("1.1.2").read_bytes(), tmp_path)
    command = [sys.executable, "-m", "composer", "diff"]
    environment = {**os.environ, base.LOCAL_WHEEL: str(wheels("1.1.2"))}
    diff = subprocess.run(command, cwd=record.ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, check=True)
    package = tree.compose(FORK, upstream, record.lock())
    assert {path: (tmp_path / path).read_bytes() for path in package} == package


@pytest.mark.parametrize("version, after", [("1.1.2", False), ("1.1.2", True), ("1.0.3", True)])
def test_each_patch_can_be_sent(wheels, tmp_path, monkeypatch, version, after):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels(version)))
    fork, upstream = record.load(version=version, patches=""), base.members(wheels(version).read_bytes())
    base.unpack(wheels(version).read_bytes(), tmp_path)
    for number, patch in enumerate(fork.patches):
        sent = __main__.diff_of(fork, patch.number, after)
        assert sent.startswith(f"Subject: [PATCH] {patch.title}\n\n{patch.row('Reason')}\n\n## What")
        assert "Changed by" not in sent and "this fork does" not in sent and "stock's behavior back" not in sent
        needed = [other for other in fork.patches[:number] if after or other.number in patch.needs]
        before, *_ = tree.patched(needed, upstream)
        package, *_ = tree.patched([*needed, patch], upstream)
        changed = {path for path in package if package[path] != before.get(path)}
        for path in changed:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            if path in before:
                (tmp_path / path).write_bytes(before[path])
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=sent.encode(errors="surrogateescape"), check=True)
        assert {path: (tmp_path / path).read_bytes() for path in changed} == {path: package[path] for path in changed}, patch


@pytest.mark.parametrize(
    "patch, message",
    [("0005", "does not apply to 1.0.3, but to 1.1.0 to 1.1.2"), ("0099", "There is no patch 0099: choose from PR_2537, 0001")],
)
def test_a_patch_that_is_not_there(wheels, monkeypatch, patch, message):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.0.3")))
    with pytest.raises(Refusal, match=message):
        __main__.diff_of(record.load(version="1.0.3", patches=""), patch)


def test_the_grafted_files_pass_upstreams_linter(upstream, tmp_path):
    package, _, changed = tree.patched(FORK.patches, upstream)
    metadata.write({path: package[path] for path in changed}, tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--no-cache", "--config", str(record.ROOT / "tests/fork/upstream_ruff.toml"), str(tmp_path)]
    for command in ([*ruff, "check", *settings], [*ruff, "format", "--diff", *settings]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("pyproject.toml", 'label = "pr2537"', 'label = "PR-2537"', "has to be lower-case letters and digits, a letter first"),
        ("pyproject.toml", "[tool.fork]", "[tool.fork", "pyproject.toml cannot be read as TOML"),
        ("pyproject.toml", "[tool.fork.requires]", "[tool.other]", "pyproject.toml has no table .tool.fork.requires."),
        ("composer/lock.toml", "revision = ", "revision ", "composer/lock.toml cannot be read as TOML"),
        (
            "composer/lock.toml",
            "revision = ",
            "revision = -",
            "lock.toml is not as `python -m composer lock` writes it: restore",
        ),
        ("composer/lock.toml", "digest", "digests", "lock.toml is not as"),
        ("composer/lock.toml", '"1.1.2" = "9fea', '"1.1.2" = "', "lock.toml is not as"),
        ("composer/lock.toml", "[bases]", "[others]", "lock.toml is not as"),
        ("patches/0001-average-finite-losses/README.md", "1.0.1 to 1.1.2", "all", 'the row "Applies to" has to start with'),
        (
            "patches/0001-average-finite-losses/README.md",
            "1.0.1 to 1.1.2",
            "1.1.2 to 1.0.1",
            'the row "Applies to" has to start',
        ),
        ("PR_2537.md", "| Applies to | 1.0.1", "| Applies to | 1.1.3", 'the row "Applies to" has to start with'),
        (
            "PR_2537.md",
            "1.0.1 to 1.1.2",
            "1.0.1 to 1.0.3",
            "PR_2537 applies to 1.0.1 to 1.0.3: this fork cannot be built on 1.1.2",
        ),
    ],
)
def test_a_record_that_cannot_be_is_refused(repo, name, old, new, message):
    replace(repo / name, old, new)
    with pytest.raises(Refusal, match=message):
        record.load(repo)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: (path.unlink(), path.symlink_to("/nowhere")), "logger.py is a link or a special file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "logger.py is a link or a special file"),
        (lambda path: (shutil.rmtree(path.parent), path.parent.symlink_to("/tmp")), "utils is a link or a special file"),
    ],
    ids=["link", "pipe", "link to a folder"],
)
def test_a_delta_has_only_files_and_folders(repo, spoil, message):
    spoil(repo / LOGGER)
    with pytest.raises(Refusal, match=message):
        lock.renew(repo)


@pytest.mark.parametrize(
    "text, message", [(b"# \xe9\n", "is not UTF-8"), (b"No title\n", "has no title"), (b"", "has no title")]
)
def test_a_page_has_a_title_in_utf8(repo, text, message):
    (repo / LAST.page).write_bytes(text)
    with pytest.raises(Refusal, match=f"{LAST.page} {message}"):
        record.find(LAST.name, record.all_patches(repo)).title  # noqa: B018


@pytest.mark.parametrize("row", ["| Needs | 0002 |", "| Needs   |  0002, for a function  |  "])
def test_what_a_patch_needs_has_to_be_there_before_it(repo, row):
    page = repo / "patches/0005-load-the-right-model/README.md"
    page.write_text(re.sub(r"(?m)^\| Needs .*$", row, page.read_text()))
    with pytest.raises(Refusal, match="0005-load-the-right-model needs 0002, which is left out"):
        record.load(repo, patches="0005")
    shutil.rmtree(repo / "patches/0002-atomic-checkpoints")
    with pytest.raises(Refusal, match="0005-load-the-right-model needs 0002, but no patch before it has that number"):
        lock.renew(repo)


def test_a_lock_that_cannot_be_written_is_refused(repo):
    (repo / "composer/lock.toml.part").mkdir()
    (repo / "speechbrain/x.py").write_text("X = 1\n")
    with pytest.raises(Refusal, match=r"lock.toml cannot be written \(Is a directory\)"):
        lock.renew(repo)


@pytest.mark.parametrize("name", ["a b.py", "caf\xe9.py", 'a"b.txt'])
def test_a_name_of_a_delta_is_plain(repo, name):
    (repo / "speechbrain" / name).write_text("")
    with pytest.raises(Refusal, match="rename it; names in a delta have only ASCII letters"):
        lock.renew(repo)


@pytest.mark.parametrize("name", ["0003-again", "0099 what", "watch"])
def test_a_folder_of_patches_needs_a_number_of_its_own(repo, name):
    (repo / "patches" / name / "speechbrain").mkdir(parents=True)
    with pytest.raises(Refusal, match="rename this folder to a free number and a name"):
        record.load(repo)


@pytest.mark.parametrize("name", ["composer/lock.toml", "pyproject.toml", "PR_2537.md"])
def test_a_missing_file_is_named(repo, name):
    (repo / name).unlink()
    with pytest.raises(Refusal, match=rf"{name} cannot be read \(No such file or directory\), and the build needs it"):
        record.load(repo).listing  # noqa: B018


@pytest.mark.parametrize("epoch", ["abc", "1.5", "-5", "99999999999", "0"])
def test_a_date_that_no_archive_can_hold_is_refused(monkeypatch, stock_wheel, tmp_path, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    monkeypatch.setenv(base.LOCAL_WHEEL, str(stock_wheel))
    for build in (backend.build_wheel, backend.build_sdist):
        with pytest.raises(SystemExit, match=f"SOURCE_DATE_EPOCH={epoch} is not a time"):
            build(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, status", [(["check", "--base", "1.1.2"], 0), (["--help"], 0), ([], 2), (["chek"], 2)])
def test_the_command_line(stock_wheel, arguments, status):
    environment = {**os.environ, base.LOCAL_WHEEL: str(stock_wheel), record.WANTED: FORK.base.version}
    command = [sys.executable, "-m", "composer", *arguments]
    assert subprocess.run(command, cwd=record.ROOT, env=environment, capture_output=True).returncode == status
