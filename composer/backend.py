"""The hooks that pip, build and uv call (PEP 517): those of setuptools, which run setup.py.

They pass on ``-C base=1.0.3`` and ``-C patches=none``, and return the metadata without composing the package.
"""

import contextlib
import os
from pathlib import Path

from composer import Refusal, record

try:
    from composer import base, metadata
except ImportError as error:
    raise Refusal(f"The checkout is not complete ({error}): restore it with git.") from None

OPTIONS = {"base": record.WANTED, "patches": record.CHOSEN}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the fork's wheel."""
    with _environment(config_settings, metadata_directory):
        from setuptools import build_meta

        return build_meta.build_wheel(wheel_directory)


def build_sdist(sdist_directory, config_settings=None):
    """Pack what a build needs; the sdist can build on every base."""
    with _environment(config_settings):
        from setuptools import build_meta

        return build_meta.build_sdist(sdist_directory)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    """Write the dist-info without composing, and leave the base wheel next to it for `build_wheel`."""
    with _environment(config_settings):
        fork = record.load()
        wheel = base.fetch(fork.base)
        folder = Path(metadata_directory, f"speechbrain-{fork.version}.dist-info")
        metadata.write(metadata.dist_info(fork, base.members(wheel)), folder)
        folder.with_name(fork.base.wheel).write_bytes(wheel)
        return folder.name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Refuse ``pip install -e``."""
    raise Refusal(
        "speechbrain cannot be installed with -e from here: this repo has only what the fork changes, "
        "not a package to point at. Run `pip install .`, and again after each change."
    )


@contextlib.contextmanager
def _environment(config_settings, metadata_directory=None):
    """Turn -C options into the environment variables that setup.py reads."""
    before = dict(os.environ)
    for name, value in (config_settings or {}).items():
        if name not in OPTIONS:
            raise Refusal(f"There is no option -C {name}: this build takes -C base=... and -C patches=...")
        os.environ[OPTIONS[name]] = " ".join(value) if isinstance(value, list) else value
    wheels = metadata_directory and Path(metadata_directory).parent
    if wheels and list(wheels.glob("speechbrain-*.whl")):
        os.environ[base.LOCAL_WHEEL] = str(wheels)
    try:
        yield
    except OSError as error:
        raise Refusal(
            f"The build cannot write or read {error.filename} ({error.strerror}): free some space, or set TMPDIR to another "
            "folder."
        ) from None
    finally:
        os.environ.clear()
        os.environ.update(before)
