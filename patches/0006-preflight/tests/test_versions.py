"""The installed versions are compared with what SpeechBrain and the recipe ask for."""

from functools import partial
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from speechbrain.preflight.checks import versions
from speechbrain.preflight.observe import Given, Observed
from speechbrain.preflight.report import Report

from brains import judge

RECIPE = """# of the recipe
transformers>=4.30,<5  # a comment
-r more.txt
git+https://example.org/tool.git
k2; python_version < "3"
"""
NUMPY = {"numpy": "1.16.6"}


def findings(folder, patch, lines=None, installed=None, place="."):
    """Make a recipe with the given requirements and pretended versions; returns the findings."""
    script = folder / "recipe" / "task" / "train.py"
    script.parent.mkdir(parents=True)
    if lines is not None:
        (script.parent / place / "extra_requirements.txt").write_text(lines)
    real = versions.version

    def version(name):
        found = (installed or {}).get(name, "") or real(name)
        if found == "none":
            raise PackageNotFoundError(name)
        return found

    patch.setattr(versions, "version", version)
    return judge(versions, Observed(Given(None, script=script)))


def report_of(folder, case, *_):
    with pytest.MonkeyPatch.context() as patch:
        return Report(findings(folder, patch, *case))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return partial(findings, tmp_path, monkeypatch)


CASES = [
    ((None, NUMPY), "version-untested", "numpy"),
    ((None, {"torch": "2.7.0+cu128"}), "version-untested", "torch"),
    ((None, {"torchaudio": "2.7.0"}), "version-untested", "torchaudio"),
    ((None, {"hyperpyyaml": "0.0.0"}), "version-untested", "hyperpyyaml"),
    (
        (RECIPE, {"transformers": "5.0"}),
        "version-of-recipe",
        "transformers 5.0 is installed, but the recipe asks for transformers<5,>=4.30",
    ),
    (
        (RECIPE, {"transformers": "5.0"}, ".."),
        "version-of-recipe",
        "transformers 5.0 is installed, but the recipe asks for transformers<5,>=4.30",
    ),
    (
        (RECIPE, {"transformers": "none"}),
        "not-installed",
        "transformers is not installed, but the recipe asks for ",
    ),
    (("Trans_formers\ntrans-formers>=4", {}), "not-installed", "Trans_formers is not installed"),
]


@pytest.mark.parametrize(("case", "code", "what"), CASES)
def test_a_wrong_or_missing_version_is_reported(recipe, case, code, what):
    (finding,) = recipe(*case)
    assert finding.code == code and what in finding.what and finding.where and finding.remedy
    assert finding.level == ("note" if code == "not-installed" else "warning")


def test_every_code_has_a_case():
    assert set(versions.CODES) == {code for _, code, _ in CASES}


HEALTHY = [
    (None, {}),
    ("", {}),
    (RECIPE, {"transformers": "4.57.1"}),
    (RECIPE, {"transformers": "4.30.0.dev0"}),
    (RECIPE, {"transformers": "5.0"}, "../.."),
    ("torch==2.9.1", {"torch": "2.9.1+cu128"}),
    ("torch>=2.9", {"torch": "2.9.0a0+git123"}),
    ("tool>=3", {"tool": "unknown"}),
]


@pytest.mark.parametrize("case", HEALTHY)
def test_a_right_version_is_not_reported(recipe, case):
    assert recipe(*case) == []


def test_speechbrain_asks_for_the_packages_of_these_tests():
    assert {"torch", "torchaudio", "hyperpyyaml", "numpy"} <= {Requirement(one).name for one in requires("speechbrain")}


def test_without_a_script_only_the_requirements_of_speechbrain_count():
    assert judge(versions, Observed(Given(None))) == []


def test_the_requirements_of_speechbrain_that_do_not_apply(monkeypatch):
    more = ['numpy<1; extra == "dev"', 'numpy<1; python_version < "3"', "no-such-package>=3"]
    asked = [*requires("speechbrain"), *more]
    monkeypatch.setattr(versions, "requires", lambda name: asked)
    assert judge(versions, Observed(Given(None))) == []
