"""Errors name the file, and how its keys would fit."""

import collections
import os
import pathlib
import re

from speechbrain.utils.checkpoints import (
    _damage,  # of patch 0002
    _upstream_torch_patched_state_dict_load,
    _upstream_torch_recovery,
    logger,
)


def _some(names, separator=", "):
    """Returns at most three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return separator.join(names[:3]) + more


def _mismatches(error):
    """Returns what `load_state_dict` says about sizes, or all that it says."""
    sizes = re.findall(
        r"size mismatch for (\S+):.*?(\[.*?\]).*(\[.*?\])", str(error)
    )
    return _some(
        [
            f"size mismatch for {key}: {old} in the file, {new} in the object"
            for key, old, new in sizes
        ],
        "; ",
    ) or str(error).rstrip(" .\n")


def torch_recovery(obj, path, end_of_epoch):
    try:
        _upstream_torch_recovery(obj, path, end_of_epoch)
    except (RuntimeError, ValueError) as error:
        if not re.search("load(ing|ed) state.dict", str(error)):
            raise
        raise type(error)(
            f"{path} does not fit {pathlib.Path(path).stem}: "
            f"{_mismatches(error)}. Use the settings of the run that saved "
            "it, or another output_folder."
        ) from error


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
        if damage is not None:
            raise RuntimeError(
                f"{path} is damaged ({damage}): download it again."
            ) from error
        content = re.search(
            r"GLOBAL (\S+)|(TorchScript)|'(\S+)' object has no attribute 'keys'",
            str(error),
        )
        if content is None:
            raise
        raise RuntimeError(
            f"{path} is not a state dict, since it contains "
            f"{content[content.lastindex]}: save the `state_dict()` of the "
            "object instead."
        ) from error


def _remedy(own, given):
    """Returns how to make the keys of a file those of a module, or None."""
    if own & given.keys():
        return "save only that"
    for key, part in given.items():
        if isinstance(part, dict) and (remedy := _remedy(own, part)):
            return f"the state is under {key!r}, {remedy}"
    for change, longer, shorter in (
        ("remove {!r} from its keys", given.keys(), own),
        ("add {!r} to its keys", own, given.keys()),
    ):
        prefixes = collections.Counter(
            key[: dot.end()]
            for key in map(str, longer)
            for dot in re.finditer(r"\.", key)
            if key[dot.end() :] in shorter
        ).most_common(2)
        # Of two that fit as many keys, none is certain
        if len({count for _, count in prefixes}) == len(prefixes) > 0:
            return change.format(prefixes[0][0])
    return None


def torch_parameter_transfer(obj, path):
    """Non-strict Torch Module state_dict load.

    Loads those parameters that obj and the file both have. One warning counts
    the others.

    Arguments
    ---------
    obj : torch.nn.Module
        Instance for which to load the parameters.
    path : str
        Path where to load from.

    Raises
    ------
    RuntimeError
        If the file has parameters, and obj has none of them.
    """
    state_dict = torch_patched_state_dict_load(path)
    keys = obj.load_state_dict(state_dict, strict=False)
    unused, missing = keys.unexpected_keys, keys.missing_keys
    if missing and unused and len(unused) == len(state_dict):
        remedy = _remedy(set(obj.state_dict()), state_dict) or (
            f"its first one is {unused[0]!r}, the module's is {missing[0]!r}"
        )
        raise RuntimeError(
            f"{path}: the module takes none of its {len(unused)} keys: {remedy}."
        )
    said = []
    if unused:
        said.append(
            f"{len(unused)} of {len(state_dict)} keys were not used: "
            f"{_some(unused)}"
        )
    if missing:
        said.append(
            f"{len(missing)} parameters of the module were not in the file: "
            f"{_some(missing)}"
        )
    if said:
        logger.warning(f"{path}: {'; '.join(said)}")
