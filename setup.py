"""The build: composer/ puts the delta into the released wheel, and setuptools packs the result.

`pip install .` runs it; `SPEECHBRAIN_BASE=1.0.3` and `SPEECHBRAIN_PATCHES=none` choose another base and fewer patches.
"""

import functools
import os
import re
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from composer import Refusal, base, metadata, record, tree

if {"install", "develop", "editable_wheel", "bdist_egg", "build"} & {*sys.argv[1:]}:
    raise Refusal("setup.py builds wheels and sdists only: run `pip install .`, or `python setup.py bdist_wheel`.")
if "sdist" in sys.argv[1:]:  # an sdist can build every base and choice, so it has the default version
    os.environ.pop(record.WANTED, None)
    os.environ.pop(record.CHOSEN, None)

try:
    from setuptools import setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_py import build_py
    from setuptools.command.install import install
    from setuptools.command.install_lib import install_lib
    from setuptools.command.sdist import sdist
except Exception:  # an old setuptools fails in many ways on a new Python
    raise Refusal("This build needs setuptools 77 or later: run `python -m pip install -U setuptools`.") from None

FORK = record.load()


@functools.cache
def upstream():
    """Get the members of the base."""
    return base.members(base.fetch(FORK.base))


class BuildPackage(build_py):
    """Writes the composed package."""

    def run(self):
        """Compose base and delta; write nothing if they do not fit."""
        metadata.write(tree.compose(FORK, upstream(), record.lock()), self.build_lib)


class MovePackage(install_lib):
    """Moves the package into the wheel's folder; copying it takes longer."""

    def install(self):
        """Move it."""
        os.makedirs(self.install_dir, exist_ok=True)  # else it would be copied
        shutil.move(os.path.join(self.build_dir, "speechbrain"), os.path.join(self.install_dir, "speechbrain"))
        return []


class InstallPackage(install):
    """The step of bdist_wheel before packing: only the package, since the dist-info is not made from an egg-info."""

    sub_commands = (("install_lib", None),)


class BuildWheel(bdist_wheel):
    """Writes upstream's metadata with the fork's version, and the same bytes with every setuptools."""

    def egg2dist(self, egginfo_path, distinfo_path):
        """Write the dist-info."""
        metadata.write(metadata.dist_info(FORK, upstream()), distinfo_path)

    def write_wheelfile(self, wheelfile_base, generator="composer"):
        """Write WHEEL, without the version of setuptools."""
        super().write_wheelfile(wheelfile_base, "composer")


class PackSource(sdist):
    """Packs the delta and the composer, which can build on every base."""

    def make_release_tree(self, base_dir, files):
        """Write a PKG-INFO 2.1: from 2.2 on, installers would take it that there are no requirements."""
        super().make_release_tree(base_dir, files)
        text = f"Metadata-Version: 2.1\nName: speechbrain\nVersion: {FORK.version}\n"
        metadata.write({"PKG-INFO": text.encode()}, base_dir)


def main():
    """Run setuptools so that it writes nothing into the checkout, and so that the wheel does not depend on the machine."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or "1711929600"  # 2024-04-01
    if not re.fullmatch("[0-9]{1,10}", epoch) or not 315532800 <= int(epoch) < 2**32:
        raise Refusal(f"SOURCE_DATE_EPOCH={epoch} is not a time from 1980 to 2106 in seconds since 1970: correct or unset it.")
    os.environ["SOURCE_DATE_EPOCH"] = epoch
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as work:
        setup(
            name="speechbrain",
            version=FORK.version,
            packages=["speechbrain"],
            cmdclass={
                "bdist_wheel": BuildWheel,
                "build_py": BuildPackage,
                "install": InstallPackage,
                "install_lib": MovePackage,
                "sdist": PackSource,
            },
            options={
                "build": {"build_base": f"{work}/build"},
                "bdist_wheel": {"bdist_dir": f"{work}/wheel", "compression": "stored"},
                "egg_info": {"egg_base": work},
            },
        )


main()
