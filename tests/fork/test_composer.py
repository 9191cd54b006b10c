"""The composer: what it refuses, and that its outputs agree with the record."""

import ast
import dataclasses
import functools
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from composer import Refusal, __main__, backend, base, record, tree

FORK = record.load()
LOGGER = "speechbrain/utils/logger.py"
FORMATTER = f"{LOGGER}::format_order_of_magnitude"


@pytest.fixture(scope="module")
def upstream(stock_wheel):
    return base.members(stock_wheel.read_bytes())


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


@pytest.mark.parametrize(
    "fork, edit, said",
    [
        pytest.param(FORK, lambda d: {**d, "speechbrain/utils/loger.py": b"X = 1\n"}, "loger.py is new", id="mistyped path"),
        pytest.param(
            FORK,
            lambda d: {**d, LOGGER: d[LOGGER] + b"\n\ndef format_ordr(): pass\n"},
            "format_ordr in .* is new",
            id="mistyped name",
        ),
        pytest.param(
            FORK, lambda d: {**d, LOGGER: d[LOGGER] + b"\n\n_POWERS = 1\n"}, "_POWERS stands twice", id="stands twice"
        ),
        pytest.param(
            FORK,
            lambda d: {**d, LOGGER: d[LOGGER].replace(b"def _as", b"def get_logger(): pass\n\n\ndef _as", 1)},
            "is not recorded: add .*get_logger",
            id="not recorded",
        ),
        pytest.param(FORK, lambda d: {**d, "speechbrain/new.py": b"def ("}, "new.py cannot be read as Python", id="no Python"),
        pytest.param(FORK, lambda d: {**d, "speechbrain/core.py": b"import os\n"}, "core.py defines nothing", id="nothing"),
        pytest.param(FORK, lambda d: {**d, "speechbrain/version.txt": b"2"}, "no Python file: it cannot be changed", id="data"),
        pytest.param(FORK, lambda d: without(d, "speechbrain/core.py"), "does not hold it: restore it", id="delta lacks it"),
        pytest.param(
            dataclasses.replace(FORK, replaces={**FORK.replaces, FORMATTER: "0" * 16}),
            dict,
            "format_order_of_magnitude in speechbrain/utils/logger.py differs in speechbrain 1.1.2.* recorded is 0000",
            id="another fingerprint",
        ),
        pytest.param(
            dataclasses.replace(FORK, replaces={**FORK.replaces, f"{LOGGER}::_POWERS": "0" * 16}),
            dict,
            "recorded as replacing upstream's, but speechbrain 1.1.2 does not define it",
            id="upstream lacks it",
        ),
        pytest.param(
            dataclasses.replace(FORK, replaces=without(FORK.replaces, FORMATTER), adds=FORK.adds | {FORMATTER}),
            dict,
            "recorded as new, but speechbrain 1.1.2 defines it",
            id="upstream has it now",
        ),
    ],
)
def test_composing_refuses_what_is_not_as_recorded(upstream, fork, edit, said):
    with pytest.raises(Refusal, match=said):
        tree.compose(fork, upstream, edit(record.delta()))


def spoiled(tmp_path, stock_wheel, what):
    path = tmp_path / "base.whl"
    data = stock_wheel.read_bytes()
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes({"truncated": data[:-9], "altered": data[:-1] + b"!", "empty": b""}[what])
    return path


@pytest.mark.parametrize(
    "what, said",
    [
        ("missing", "cannot be read .No such file"),
        ("folder", "cannot be read .No such file"),
        ("truncated", "its sha256 is"),
        ("altered", "its sha256 is"),
        ("empty", "its sha256 is"),
    ],
)
def test_a_local_wheel_must_be_the_recorded_one(tmp_path, stock_wheel, monkeypatch, what, said):
    path = spoiled(tmp_path, stock_wheel, what)
    monkeypatch.setenv(base.LOCAL_WHEEL, str(path))
    with pytest.raises(Refusal, match=said) as refusal:
        base.fetch(FORK.base)
    assert str(path) in str(refusal.value) and FORK.base.wheel in str(refusal.value)


def test_no_network_names_the_way_out(monkeypatch):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Refusal, match=rf"could not be downloaded .*{base.LOCAL_WHEEL}"):
        base.fetch(FORK.base)


@pytest.mark.parametrize("setting", ["PIP_REQUIRE_HASHES=1", "PIP_NO_BINARY=:all:", "PIP_NO_BINARY=speechbrain"])
def test_pip_settings_do_not_change_what_is_fetched(monkeypatch, setting):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    monkeypatch.setenv(*setting.split("="))
    assert hashlib.sha256(base.fetch(FORK.base)).hexdigest() == FORK.base.sha256


def test_another_hash_on_the_index_is_refused(monkeypatch):
    monkeypatch.delenv(base.LOCAL_WHEEL, raising=False)
    with pytest.raises(Refusal, match=r"could not be downloaded .*DO NOT MATCH THE HASHES"):
        base.fetch(dataclasses.replace(FORK.base, sha256="0" * 64))


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "speechbrain/../../evil.py", "C:/evil.py", "..\\evil.py"])
def test_a_member_that_leaves_the_tree_is_refused(name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, "")
    with pytest.raises(Refusal, match="would leave the package tree"):
        base.members(out.getvalue())


def test_what_is_no_zip_is_refused():
    with pytest.raises(Refusal, match="is damaged"):
        base.members(b"PK\x03\x04 no more")


def test_the_revision_goes_up_with_the_delta():
    delta = record.delta()
    __main__.check([], delta)
    changed = {**delta, LOGGER: delta[LOGGER] + b"#"}
    with pytest.raises(Refusal, match=rf"set revision = {FORK.revision + 1}\b"):
        __main__.check([], changed)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"requests",', '"requests>=2",'),
        ('.replaces."1.0.3"]', '.replaces."1.0.33"]'),
    ],
)
def test_the_digest_covers_what_each_base_gets(tmp_path, old, new):
    text = (record.ROOT / "pyproject.toml").read_text()
    assert old in text
    (tmp_path / "pyproject.toml").write_text(text.replace(old, new))
    assert record.digest({}, tmp_path) != record.digest({})


@functools.cache
def definitions(source):
    """What a module and its classes define: the tree of each by its name, written down."""
    found, module = {}, ast.parse(source)
    for scope in [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]:
        prefix = "" if scope is module else f"{scope.name}."
        for node in scope.body:
            targets = [getattr(node, "name", None), *(getattr(t, "id", None) for t in getattr(node, "targets", ()))]
            found.update({prefix + name: ast.dump(node) for name in targets if name})
    return found


@pytest.mark.parametrize("version", record.bases())
def test_each_base_gets_the_patches_that_apply_and_no_others(wheels, version):
    fork, delta = record.load(version=version), record.delta()
    upstream = base.members(wheels(version).read_bytes())
    package = tree.compose(fork, upstream, delta)
    assert {path.split("/")[0] for path in package} == {"speechbrain"}
    assert package[tree.PATCHES_FILE].decode() == fork.patches and fork.patches.startswith("PR_2537: ")
    for entry in [*fork.pages, *fork.left_out]:
        path, _, name = entry.partition("::")
        there = definitions(package[path]).get(name) if name else package.get(path)
        mine = definitions(delta[path])[name] if name else delta[path]
        assert (there == mine) is (entry in fork.pages), entry
    untouched = {path for path in package if package[path] == upstream.get(path)}
    assert not untouched & {entry.partition("::")[0] for entry in fork.pages}


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
    assert "\nRequires-Python: >=3.10\n" in files[f"{info}/METADATA"], "the delta is written for it, whatever the base is for"
    wanted = {*record.load().base.requires, "torchaudio>=2.1.0"}
    assert wanted <= set(re.findall("Requires-Dist: (.*)", files[f"{info}/METADATA"]))


def test_config_settings_name_a_base_too(wheels, monkeypatch, tmp_path):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.0.1").parent))
    assert backend.build_wheel(str(tmp_path), {"base": "1.0.1"}) == f"speechbrain-1.0.1+pr2537.{FORK.revision}-py3-none-any.whl"


def test_a_base_that_is_not_pinned_is_refused(monkeypatch):
    monkeypatch.setenv(record.WANTED, "1.0.4")
    with pytest.raises(Refusal, match=r"pins no base 1\.0\.4: pinned are 1\.0\.1, .*let SPEECHBRAIN_BASE name one of them"):
        record.load()


def test_a_definition_belongs_to_one_patch(tmp_path):
    text = (record.ROOT / "pyproject.toml").read_text()
    again = (
        f'\n[tool.fork.patches."other.md"]\nadds = []\n[tool.fork.patches."other.md".replaces."1.1.2"]\n"{FORMATTER}" = ""\n'
    )
    (tmp_path / "pyproject.toml").write_text(text + again)
    with pytest.raises(Refusal, match=r"recorded under PR_2537.md and under other.md"):
        record.load(tmp_path)


def test_the_notice_names_every_changed_file(upstream):
    package = tree.compose(FORK, upstream, record.delta())
    changed = {path for path in upstream if package.get(path, upstream[path]) != upstream[path]}
    notice = (record.ROOT / "NOTICE").read_text()
    assert not {path for path in changed if path not in notice}
    for path in changed - {tree.VERSION_FILE}:
        assert package[path].startswith(b"# Changed by the pr2537 fork of SpeechBrain: "), path


def test_the_diff_turns_the_base_into_the_fork(upstream, stock_wheel, tmp_path):
    with zipfile.ZipFile(stock_wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-m", "composer", "diff"]
    environment = {**os.environ, base.LOCAL_WHEEL: str(stock_wheel)}
    diff = subprocess.run(command, cwd=record.ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, check=True)
    package = tree.compose(FORK, upstream, record.delta())
    assert {path: (tmp_path / path).read_bytes() for path in package} == package


@pytest.mark.parametrize("version, after", [("1.1.2", ()), ("1.1.2", ("--after",)), ("1.0.3", ("--after",))])
def test_each_patch_can_be_sent(wheels, tmp_path, version, after):
    fork, delta, upstream = record.load(version=version), record.delta(), base.members(wheels(version).read_bytes())
    command = [sys.executable, "-m", "composer", "diff", "--base", version, *after, "--patch"]
    environment = {**os.environ, base.LOCAL_WHEEL: str(wheels(version))}
    applied = []
    for page in sorted(set(fork.pages.values())):
        applied = [*applied, page] if after else [page]
        if applied == [page]:
            base.unpack(wheels(version).read_bytes(), tmp_path)
        sent = subprocess.run([*command, Path(page).stem], cwd=record.ROOT, env=environment, stdout=subprocess.PIPE).stdout
        assert sent.startswith(b"Subject: [PATCH] " + record.read(page).splitlines()[0][2:] + b"\n\n")
        assert b"Changed by" not in sent and b"stock's behaviour back" not in sent
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=sent, check=True)
        package, _ = tree.patched(fork.only(*applied), upstream, delta)
        assert {path: (tmp_path / path).read_bytes() for path in package} == package, page


@pytest.mark.parametrize(
    "patch, said", [("0005", "does not apply to 1.0.3"), ("0099", "there is no patch 0099: there are PR_2537, 0001")]
)
def test_a_patch_that_is_not_there(wheels, monkeypatch, patch, said):
    monkeypatch.setenv(base.LOCAL_WHEEL, str(wheels("1.0.3")))
    with pytest.raises(Refusal, match=said):
        __main__.show_diff(record.load(version="1.0.3"), record.delta(), patch)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('base = "1.1.2"', 'base = "1.1.3"', "pins no base 1.1.3: pinned are 1.0.1, 1.0.2"),
        ('label = "pr2537"', 'label = "PR-2537"', "'PR-2537' must hold lower case letters and digits"),
    ],
)
def test_a_record_that_cannot_be_is_refused(tmp_path, old, new, said):
    (tmp_path / "pyproject.toml").write_text((record.ROOT / "pyproject.toml").read_text().replace(old, new))
    with pytest.raises(Refusal, match=said):
        record.load(tmp_path)


@pytest.mark.parametrize("epoch", ["abc", "1.5", "-5", "99999999999", "0"])
def test_a_date_that_no_archive_can_hold_is_refused(monkeypatch, stock_wheel, tmp_path, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    monkeypatch.setenv(base.LOCAL_WHEEL, str(stock_wheel))
    for build in (backend.build_wheel, backend.build_sdist):
        with pytest.raises(Refusal, match=f"SOURCE_DATE_EPOCH={epoch} is no time"):
            build(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused(stock_wheel):
    with pytest.raises(Refusal, match=r"cannot be written \(File exists\)"):
        backend.build_sdist(str(stock_wheel))


@pytest.mark.parametrize("arguments, status", [(["check"], 0), (["--help"], 0), ([], 2), (["chek"], 2)])
def test_the_command_line(stock_wheel, arguments, status):
    environment = {**os.environ, base.LOCAL_WHEEL: str(stock_wheel), record.WANTED: FORK.base.version}
    command = [sys.executable, "-m", "composer", *arguments]
    assert subprocess.run(command, cwd=record.ROOT, env=environment, capture_output=True).returncode == status
