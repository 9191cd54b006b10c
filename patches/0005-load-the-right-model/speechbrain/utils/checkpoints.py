"""Errors name damaged weights, and recognize git-LFS pointers."""

import os
import pathlib

from speechbrain.utils.checkpoints import (
    _damage,  # of patch 0002
    _upstream_torch_patched_state_dict_load,
)


def torch_patched_state_dict_load(path, device="cpu"):
    with open(path, "rb") as f:
        if f.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{path} is not the file itself but a git-LFS pointer to it: "
                "run `git lfs pull` in the repository that it comes from."
            )
    try:
        return _upstream_torch_patched_state_dict_load(path, device)
    except Exception as error:
        damage = "it is empty"
        if os.path.getsize(path):
            damage = _damage(pathlib.Path(path))
        if damage is None:
            raise
        raise RuntimeError(
            f"{path} is damaged ({damage}): download it again."
        ) from error
