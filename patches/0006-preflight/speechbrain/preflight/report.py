"""The findings of a preflight, as text and as JSON."""

import json
import textwrap
from dataclasses import asdict, dataclass, field

LEVELS = ("error", "warning", "note")
COLOURS = {"error": "\033[1;31m", "warning": "\033[1;33m", "note": "\033[1;36m"}


def some(texts, shown=3):
    """List the first few texts, each once, and the number of the others.

    Example
    -------
    >>> some("abbcde")
    'a, b, c and 2 more'
    """
    texts = list(dict.fromkeys(texts))
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


@dataclass(frozen=True)
class Finding:
    """One mistake that a check found.

    Attributes
    ----------
    level : str
        ``error`` (training would fail or give a wrong result), ``warning``
        (it probably would) or ``note``.
    code : str
        The stable name of this kind of finding: lower-case words with dashes.
    what : str
        What was found, in one sentence; further lines, such as those of a
        traceback, are shown below the others.
    where : str
        The parameter, file or setting.
    remedy : str
        How to fix it.
    """

    level: str
    code: str
    what: str
    where: str = ""
    remedy: str = ""


@dataclass
class Report:
    """All findings, and remarks about the search.

    Arguments
    ---------
    findings : list of Finding
        The findings, in any order.
    said : list of str
        The remarks, for example how much of the audio was read.
    plan : dict
        What the run is going to do: by name of a line, a dict of its facts and
        its ``text``.

    Example
    -------
    >>> report = Report([Finding("note", "a-b", "see", "there", "do"), Finding("error", "c-d", "look", "here", "fix")])
    >>> report.ok
    False
    >>> print(report.text())
    note[a-b]: see
      where: there
      fix:   do
    <BLANKLINE>
    error[c-d]: look
      where: here
      fix:   fix
    <BLANKLINE>
    Found: 1 error, 1 note.
    """

    findings: list = field(default_factory=list)
    said: list = field(default_factory=list)
    plan: dict = field(default_factory=dict)

    def __post_init__(self):
        self.findings = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))

    @property
    def ok(self):
        """bool: Whether there are no errors among the findings."""
        return not any(finding.level == "error" for finding in self.findings)

    def text(self, colour=False):
        """Write out everything: the plan, the remarks, a block for each finding, errors last, and the counts.

        Arguments
        ---------
        colour : bool
            Whether to use the colours of a terminal.

        Returns
        -------
        str
            The text.
        """
        lines = [f"  {name:11}" + line["text"].replace("\n", "\n" + " " * 13) for name, line in self.plan.items()]
        parts = ["\n".join(part) for part in (["plan", *lines] if lines else [], self.said) if part]
        parts += [_block(finding, colour) for finding in reversed(self.findings)]
        counts = [(sum(finding.level == level for finding in self.findings), level) for level in LEVELS]
        parts.append("Found: " + (", ".join(f"{n} {level}{'s' * (n > 1)}" for n, level in counts if n) or "nothing") + ".")
        # A file name that is not valid UTF-8 contains characters that cannot be printed.
        return "\n\n".join(parts).encode("utf-8", "backslashreplace").decode()

    def json(self):
        """Return everything as JSON.

        Returns
        -------
        str
            An object with ``ok``, ``findings`` (objects with ``level``,
            ``code``, ``what``, ``where``, ``remedy``), ``said`` and ``plan``.
        """
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"ok": self.ok, "findings": findings, "said": self.said, "plan": self.plan}, indent=1)


def _block(finding, colour):
    """A finding as text: its first line, its place, its remedy, and further lines, such as those of a traceback."""
    first, _, more = finding.what.partition("\n")
    head = f"{finding.level}[{finding.code}]"
    lines = [f"{COLOURS[finding.level]}{head}\033[0m: {first}" if colour else f"{head}: {first}"]
    lines += [f"  {name} {text}" for name, text in (("where:", finding.where), ("fix:  ", finding.remedy)) if text]
    return "\n".join(lines + ([textwrap.indent(more.rstrip(), "    ")] if more else []))
