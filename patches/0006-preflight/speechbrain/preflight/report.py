"""What a preflight found, as a table and as JSON."""

import json
import textwrap
from dataclasses import asdict, dataclass, field

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    level : str
        ``error`` (training would fail, or yield a wrong result), ``warning``
        (it probably would) or ``note``.
    code : str
        The stable name of what was found, lower-case words with dashes.
    what : str
        What was found, in one sentence; further lines, such as those of a
        traceback, are shown below the table.
    where : str
        The parameter, file or setting.
    remedy : str
        What to do about it.
    """

    level: str
    code: str
    what: str
    where: str = ""
    remedy: str = ""


@dataclass
class Report:
    """All that was found, and what there is to say of the search.

    Arguments
    ---------
    findings : list of Finding
        What was found, in any order.
    said : list of str
        Plain remarks, such as which part of the audio was read.

    Example
    -------
    >>> report = Report([Finding("note", "a-b", "see", "there", "do"), Finding("error", "c-d", "look", "here", "mend")])
    >>> report.ok
    False
    >>> print(report.table(60))
    level  code  what               where         remedy
    -----  ----  -----------------  ------------  ---------------
    error  c-d   look               here          mend
    note   a-b   see                there         do
    """

    findings: list = field(default_factory=list)
    said: list = field(default_factory=list)

    def __post_init__(self):
        self.findings = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))

    @property
    def ok(self):
        """bool: Whether nothing that was found is an error."""
        return not any(finding.level == "error" for finding in self.findings)

    def table(self, width=120):
        """Lay out the findings as a table, errors first.

        Arguments
        ---------
        width : int
            How many characters a line may have.

        Returns
        -------
        str
            The table, without the further lines of a finding.
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
        """Say everything: the table, further lines such as tracebacks, the remarks, and the sum.

        Arguments
        ---------
        width : int
            How many characters a line of the table may have.

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
        # The name of a file that is not UTF-8 has characters in it that no terminal takes.
        return "\n\n".join(parts).encode("utf-8", "backslashreplace").decode()

    def json(self):
        """Give everything as JSON.

        Returns
        -------
        str
            An object with ``ok``, ``findings`` (objects with ``level``,
            ``code``, ``what``, ``where``, ``remedy``) and ``said``.
        """
        return json.dumps({"ok": self.ok, "findings": [asdict(f) for f in self.findings], "said": self.said}, indent=1)
