"""Builds this fork: the released SpeechBrain wheel with the definitions of ``speechbrain/`` put into it.

Used at build time and by the tests, never installed.
"""


class Refusal(SystemExit):
    """A build that cannot go on, said in one sentence and without a traceback.

    It ends the process like any ``SystemExit`` with a message: the sentence on
    standard error and exit status 1, which is what pip, build and uv show.
    """
