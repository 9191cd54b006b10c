"""When torchvision is imported."""

import importlib
import logging
import sys
import types

import pytest
import torch
from speechbrain.utils import train_logger


@pytest.fixture
def images(tmp_path):
    """ProgressSampleLogger: One that has an image to save."""
    logger = train_logger.ProgressSampleLogger(tmp_path)
    logger.remember(image=torch.zeros(3, 2, 2))
    return logger


@pytest.mark.regression
def test_importing_the_module_does_not_warn(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with caplog.at_level(logging.WARNING):
        importlib.reload(sys.modules["speechbrain.utils.train_logger"])
    assert not caplog.records


@pytest.mark.regression
def test_saving_an_image_without_torchvision_warns(images, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    images.save(1)
    assert [record.getMessage() for record in caplog.records] == ["torchvision is not available - cannot save figures"]


@pytest.mark.regression
def test_saving_an_image_uses_torchvision(images, tmp_path, monkeypatch):
    saved = []
    utils = types.SimpleNamespace(save_image=lambda image, path: saved.append((image.shape, path)))
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(utils=utils))
    images.save(1)
    assert saved == [((3, 2, 2), str(tmp_path / "1" / "image.png"))]
