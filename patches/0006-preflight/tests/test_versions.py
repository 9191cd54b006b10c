"""The installed versions are compared with what SpeechBrain asks for."""

from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from speechbrain.preflight.checks import versions
from speechbrain.preflight.observe import Given, Observed
from speechbrain.preflight.report import Report

from brains import judge

NUMPY = {"numpy": "1.16.6"}


def findings(patch, installed, more=()):
    """Pretend other versions, and that SpeechBrain asks for more; returns the findings."""
    real, asked = versions.version, [*requires("speechbrain"), *more]
    patch.setattr(versions, "version", lambda name: installed.get(name) or real(name))
    patch.setattr(versions, "requires", lambda name: asked)
    return judge(versions, Observed(Given(None)))


def report_of(folder, case, *_):
    with pytest.MonkeyPatch.context() as patch:
        return Report(findings(patch, case))


CASES = [
    (NUMPY, "version-untested", "numpy"),
    ({"torch": "2.7.0+cu128"}, "version-untested", "torch"),
    ({"torchaudio": "2.7.0"}, "version-untested", "torchaudio"),
    ({"hyperpyyaml": "0.0.0"}, "version-untested", "hyperpyyaml"),
]


@pytest.mark.parametrize(("installed", "code", "what"), CASES)
def test_a_wrong_version_is_reported(monkeypatch, installed, code, what):
    (finding,) = findings(monkeypatch, installed)
    assert finding.code == code and what in finding.what and finding.where and finding.remedy
    assert finding.level == "warning"


def test_every_code_has_a_case():
    assert set(versions.CODES) == {code for _, code, _ in CASES}


HEALTHY = [
    ({}, []),
    ({"transformers": "4.57.1"}, ["transformers>=4.30,<5"]),
    ({"transformers": "4.30.0.dev0"}, ["transformers>=4.30,<5"]),
    ({"transformers": "5.0"}, ['transformers<5; python_version < "3"', 'transformers<5; extra == "dev"']),
    ({"torch": "2.9.1+cu128"}, ["torch==2.9.1"]),
    ({"torch": "2.9.0a0+git123"}, ["torch>=2.9"]),
    ({"tool": "unknown"}, ["tool>=3"]),
    ({}, ["no-such-package>=3"]),
]


@pytest.mark.parametrize(("installed", "more"), HEALTHY)
def test_a_right_version_is_not_reported(monkeypatch, installed, more):
    assert findings(monkeypatch, installed, more) == []


def test_speechbrain_asks_for_the_packages_of_these_tests():
    assert {"torch", "torchaudio", "hyperpyyaml", "numpy"} <= {Requirement(one).name for one in requires("speechbrain")}
