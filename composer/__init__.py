"""Builds this fork: puts the definitions of the delta into the released SpeechBrain wheel.

Used at build time and by the tests. Only ``fork.py`` is installed, as ``speechbrain/fork.py``.
"""

import sys


class Refusal(SystemExit):
    """A build that cannot go on, reported in one sentence and without a traceback.

    It ends the process like any ``SystemExit`` with a message: the sentence on
    standard error and exit status 1, which is what pip, build and uv show.
    """


if sys.version_info < (3, 10):  # noqa: UP036  an installer learns this only from the build
    raise Refusal(f"This fork needs Python 3.10 or later, and this is {sys.version.split()[0]}: use a newer Python.")
