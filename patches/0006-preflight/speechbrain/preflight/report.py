"""The findings of a preflight, as a table and as JSON."""

import json
import textwrap
from dataclasses import asdict, dataclass, field

LEVELS = ("error", "warning", "note")


def some(texts, shown=3):
    """List the first few texts, and the number of the others.

    Arguments
    ---------
    texts : iterable of str
        The texts.
    shown : int
        How many to list.

    Returns
    -------
    str

    Example
    -------
    >>> some("abcde")
    'a, b, c and 2 more'
    """
    texts = list(texts)
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
        traceback, are shown below the table.
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

    Example
    -------
    >>> report = Report([Finding("note", "a-b", "see", "there", "do"), Finding("error", "c-d", "look", "here", "fix")])
    >>> report.ok
    False
    >>> print(report.table(60))
    level  code  what               where         remedy
    -----  ----  -----------------  ------------  ---------------
    error  c-d   look               here          fix
    note   a-b   see                there         do
    """

    findings: list = field(default_factory=list)
    said: list = field(default_factory=list)

    def __post_init__(self):
        self.findings = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))

    @property
    def ok(self):
        """bool: Whether there are no errors among the findings."""
        return not any(finding.level == "error" for finding in self.findings)

    def table(self, width=120):
        """Lay out the findings as a table, errors first.

        Arguments
        ---------
        width : int
            The maximal number of characters in a line.

        Returns
        -------
        str
            The table, with only the first line of each finding.
        """
        rows = [(f.level, f.code, f.what.split("\n")[0], f.where, f.remedy) for f in self.findings]
        head = ("level", "code", "what", "where", "remedy")
        level, code = (max(len(row[column]) for row in [head, *rows]) for column in (0, 1))
        left = max(width - level - code - 8, 30)
        widths = (level, code, left * 4 // 10, left * 3 // 10, left * 35 // 100)
        lines = []
        for row in (head, tuple("-" * size for size in widths), *rows):
            cells = [textwrap.wrap(cell, size, break_on_hyphens=False) or [""] for cell, size in zip(row, widths)]
            for number in range(max(map(len, cells))):
                line = "  ".join((cell[number] if number < len(cell) else "").ljust(s) for cell, s in zip(cells, widths))
                lines.append(line.rstrip())
        return "\n".join(lines)

    def text(self, width=120):
        """Write out everything: the table, further lines such as tracebacks, the remarks, and the counts.

        Arguments
        ---------
        width : int
            The maximal number of characters in a line of the table.

        Returns
        -------
        str
            The text.
        """
        parts = [self.table(width)] if self.findings else []
        for finding in self.findings:
            first, _, more = finding.what.partition("\n")
            if more:
                parts.append(f"{finding.code}: {first}\n{textwrap.indent(more.rstrip(), '    ')}")
        if self.said:
            parts.append("\n".join(self.said))
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
            ``code``, ``what``, ``where``, ``remedy``) and ``said``.
        """
        return json.dumps({"ok": self.ok, "findings": [asdict(f) for f in self.findings], "said": self.said}, indent=1)
