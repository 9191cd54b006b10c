"""The build: composer/ puts the delta into the released wheel, and setuptools packs the result.

`pip install .` runs it; `SPEECHBRAIN_BASE=1.0.3` and `SPEECHBRAIN_PATCHES=none` choose another base and fewer patches.
"""

import os
import re
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from composer import Refusal, base, metadata, record, tree

if {"install", "develop", "editable_wheel", "bdist_egg", "build"} & {*sys.argv[1:]}:
    raise Refusal("setup.py builds wheels and sdists only: run `pip install .`, or `python setup.py bdist_wheel`.")
if "sdist" in sys.argv[1:]:  # an sdist can build all: it has the default version
    os.environ.pop(record.WANTED, None)
    os.environ.pop(record.CHOSEN, None)

try:
    from setuptools import setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_py import build_py
    from setuptools.command.sdist import sdist
except Exception:  # an old setuptools fails in many ways on a new Python
    raise Refusal("This build needs setuptools 77 or later: run `python -m pip install -U setuptools`.") from None

FORK = record.load()


class BuildPackage(build_py):
    """Writes the composed package."""

    def run(self):
        """Compose base and delta; nothing is written where they do not fit."""
        package = tree.compose(FORK, base.members(base.fetch(FORK.base)), record.lock())
        metadata.write(package, self.build_lib)


class BuildWheel(bdist_wheel):
    """Writes upstream's metadata with the fork's version, and the same bytes whatever the setuptools."""

    def egg2dist(self, egginfo_path, distinfo_path):
        """Write the dist-info, in place of setuptools' own egg-info."""
        shutil.rmtree(egginfo_path)
        metadata.write(metadata.dist_info(FORK, base.members(base.fetch(FORK.base))), distinfo_path)

    def write_wheelfile(self, wheelfile_base, generator="composer"):
        """Write WHEEL, without the version of setuptools."""
        super().write_wheelfile(wheelfile_base, "composer")


class PackSource(sdist):
    """Packs the delta and the composer, which can build on every base."""

    def make_release_tree(self, base_dir, files):
        """Write a PKG-INFO 2.1: from 2.2 on, installers take requirements that it does not have for final."""
        super().make_release_tree(base_dir, files)
        text = f"Metadata-Version: 2.1\nName: speechbrain\nVersion: {FORK.version}\n"
        metadata.write({"PKG-INFO": text.encode()}, base_dir)


def main():
    """Run setuptools, with nothing written into the checkout and nothing that depends on the machine in the wheel."""
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
            cmdclass={"bdist_wheel": BuildWheel, "build_py": BuildPackage, "sdist": PackSource},
            options={
                "build": {"build_base": f"{work}/build"},
                "bdist_wheel": {"bdist_dir": f"{work}/wheel", "compression": "stored"},
                "egg_info": {"egg_base": work},
            },
        )


main()
