"""Puts the definitions of one delta file into upstream's file of the same path.

Bytes are spliced at the positions that ``ast`` gives: whatever is not replaced
stays byte for byte, line endings included.
"""

import ast
import hashlib
import re
from dataclasses import dataclass, field

from composer import Refusal

KEPT = "_upstream_"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
INNER_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Graft:
    """The result of a graft.

    Attributes
    ----------
    source : bytes
        The grafted file.
    replaced : dict of str to str
        Name of each replaced definition (``name`` or ``Class.name``), with the
        fingerprint of upstream's.
    added : list of str
        Name of each new definition.
    """

    source: bytes
    replaced: dict = field(default_factory=dict)
    added: list = field(default_factory=list)


def graft(upstream, delta, path):
    r"""Put the definitions of a delta file into upstream's file.

    Arguments
    ---------
    upstream : bytes
        Upstream's source.
    delta : bytes
        A docstring, imports, functions, classes and assignments to a single
        name. A definition replaces upstream's of that name, or is new; the
        comment right above it comes along. A class that upstream has too is
        written bare: its members replace upstream's or are new. An import from
        the file's own module declares a name that upstream provides there: it
        is checked, not grafted. Where the delta mentions ``_upstream_<name>``,
        the replaced function ``<name>`` is kept under that name.
    path : str
        The path of both inside the package tree.

    Returns
    -------
    Graft
        The grafted source, what was replaced and what is new.

    Raises
    ------
    Refusal
        If the delta holds anything else, or if what it names does not stand
        upstream exactly once.

    Example
    -------
    >>> done = graft(b"X = 1\nY = 2\n", b"X = 3\n", "speechbrain/x.py")
    >>> done.source
    b'X = 3\nY = 2\n'
    >>> list(done.replaced)
    ['X']
    """
    return _Grafting(upstream, delta, path).run()


def fingerprint(definition):
    """Fingerprint the source of a definition.

    Arguments
    ---------
    definition : bytes
        Its source, from the first decorator to its end.

    Returns
    -------
    str
        16 hexadecimal digits: enough to notice a change, the wheel's own hash
        keeps out anything worse.

    Example
    -------
    >>> fingerprint(b"X = 1")
    '0054327b6dd84e69'
    """
    return hashlib.sha256(definition).hexdigest()[:16]


class _Source:
    """A file as bytes, with the tree that says where its statements stand."""

    def __init__(self, data, name):
        self.data = data
        self.name = name
        try:
            if data.startswith(b"\xef\xbb\xbf"):
                raise SyntaxError("it starts with a byte order mark")
            data.decode("utf-8")  # the columns of ast count UTF-8 bytes
            self.tree = ast.parse(data)
        except (SyntaxError, ValueError) as error:
            raise Refusal(f"{name} cannot be read as Python in UTF-8: {error}.") from None
        self.lines = [0]  # where each line starts; bytes.splitlines ends lines where ast does, at LF, CR and CRLF
        for line in data.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        # A line that starts with # and ends a statement is the end of a string, not a comment.
        self.ends = {node.end_lineno for node in ast.walk(self.tree) if isinstance(node, ast.stmt)}

    def first_line(self, node):
        return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])

    def start(self, node):
        return self.lines[self.first_line(node) - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        """The source of a definition, decorators included, which must have its lines for itself."""
        line, start, end = self.lines[self.first_line(node) - 1], self.start(node), self.end(node)
        rest = self.data[end : self.line_end(end)].strip()
        if self.data[line:start].strip() or not (rest == b"" or rest.startswith(b"#")):
            raise Refusal(f"{self.name}: the definition at line {node.lineno} shares its line with other code.")
        return self.data[start:end]

    def comment(self, node):
        """Where the comment right above a definition starts, or the definition itself."""
        line = self.first_line(node)
        while line > 1 and line - 1 not in self.ends:
            if not self.data[self.lines[line - 2] : self.lines[line - 1]].lstrip().startswith(b"#"):
                break
            line -= 1
        return self.lines[line - 1] + node.col_offset

    def line_end(self, position):
        return re.compile(rb"[\r\n]|\Z").search(self.data, position).start()

    def binders(self, name, body):
        """The statements of a body that bind a name."""
        return [node for node in body if name in _bound(node)]


class _Grafting:
    def __init__(self, upstream, delta, path):
        self.mine = _Source(delta, f"the delta's {path}")
        self.theirs = _Source(upstream, f"upstream's {path}")
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.kept = {name for node in ast.walk(self.mine.tree) for name in _mentioned(node)}
        self.done = Graft(upstream)
        self.edits = []  # (start, end, bytes to stand there)

    def run(self):
        body = _without_docstring(self.mine.tree.body)
        definitions = [node for node in body if not isinstance(node, IMPORTS)]
        upstream = self.theirs.data
        self.body(definitions, self.theirs.tree.body, len(upstream.rstrip()), b"\n\n\n", "")
        self.imports([node for node in body if isinstance(node, IMPORTS)])
        for name in sorted(self.kept):
            raise Refusal(f"{self.mine.name} mentions {KEPT}{name}, but replaces no function {name}.")
        newline = b"\r\n" if b"\r\n" in upstream else b"\n"
        # From the back, so that positions stay true. An insertion sorts before the replacement that it precedes.
        for start, end, text in sorted(self.edits, key=lambda edit: edit[:2], reverse=True):
            text = text.replace(b"\r\n", b"\n").replace(b"\n", newline)
            self.done.source = self.done.source[:start] + text + self.done.source[end:]
        return self.done

    def body(self, ours, upstreams, end, gap, prefix):
        """Graft the definitions of a module or a class; `gap` parts two of them, `end` is where the last may follow."""
        waiting = []  # new definitions go before the replaced one that they precede
        seen = set()
        for node in ours:
            name = self.name(node)
            if name in seen:
                raise Refusal(f"{self.mine.name}: {prefix}{name} stands twice; keep one.")
            seen.add(name)
            there = self.theirs.binders(name, upstreams)
            if not there:
                waiting.append(self.own_text(node))
                self.done.added.append(prefix + name)
                continue
            if len(there) > 1 or _kind(there[0]) != _kind(node):
                raise Refusal(
                    f"{self.theirs.name} binds {prefix}{name} {len(there)} time(s), line {there[0].lineno} first, not as "
                    f"exactly one {_kind(node)}: the delta cannot replace it; replace what uses it instead."
                )
            start = self.theirs.comment(there[0])
            if isinstance(node, ast.ClassDef) and not prefix:
                self.members(node, there[0])
            else:
                text = self.theirs.text(there[0])
                self.done.replaced[prefix + name] = fingerprint(text)
                kept = self.renamed(there[0], name) + gap if name in self.kept else b""
                self.kept.discard(name)
                self.edits.append((self.theirs.start(there[0]), self.theirs.end(there[0]), kept + self.own_text(node)))
            if waiting:
                self.edits.append((start, start, b"".join(text + gap for text in waiting)))
                waiting = []
        if waiting:
            end = self.theirs.line_end(end)
            lead, trail = (gap, b"") if self.theirs.data.strip() else (b"", b"\n")
            self.edits.append((end, end, lead + gap.join(waiting) + trail))

    def members(self, ours, there):
        """Graft the members of a class that both have."""
        if ours.bases or ours.keywords or ours.decorator_list:
            raise Refusal(f"{self.mine.name}: upstream has class {ours.name} too; write it bare, without bases or decorators.")
        members = _without_docstring(ours.body)
        column = there.body[0].col_offset
        if any(node.col_offset != column for node in members):
            raise Refusal(f"{self.mine.name}: indent the members of class {ours.name} by {column}, as upstream does.")
        self.body(members, there.body, self.theirs.end(there), b"\n\n" + b" " * column, f"{ours.name}.")

    def imports(self, ours):
        """Graft the imports that upstream lacks, after its leading block of imports."""
        top = self.theirs.tree.body
        present = {_key(node, alias) for node in top if isinstance(node, IMPORTS) for alias in node.names}
        lines = []
        for node in ours:
            names = [alias for alias in node.names if _key(node, alias) not in present]
            if getattr(node, "module", None) == "__future__" or any(alias.name == "*" for alias in names):
                raise Refusal(f"{self.mine.name}: line {node.lineno}: neither __future__ nor star imports can be grafted.")
            if getattr(node, "module", None) == self.module and not node.level:
                for alias in node.names:
                    if alias.asname or not self.theirs.binders(alias.name, top):
                        raise Refusal(f"{self.theirs.name} provides no {alias.name}, which the delta imports from there.")
                continue
            for alias in names:
                name = _imported(alias)
                package = isinstance(node, ast.Import) and not alias.asname  # `import a.b` beside `import a` binds the same a
                if any(not (package and _imports_package(n, name)) for n in self.theirs.binders(name, top)):
                    raise Refusal(f"{self.theirs.name} binds {name} otherwise than the delta's import at line {node.lineno}.")
            if names:
                node.names = names
                lines.append(ast.unparse(node).encode() + b"\n")
        if lines:
            docstring = top[: len(top) - len(_without_docstring(top))]
            at = self.theirs.start(top[0]) if top else 0
            for node in top:
                if not isinstance(node, IMPORTS) and node not in docstring:
                    break
                at = self.theirs.lines[node.end_lineno]
            lead = b"" if self.theirs.data[:at].endswith((b"\n", b"\r")) or not at else b"\n"
            self.edits.append((at, at, lead + b"".join(lines)))

    def name(self, node):
        """The name that a statement of the delta defines."""
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            return node.name
        if _kind(node) == "assignment":
            return (node.targets[0] if isinstance(node, ast.Assign) else node.target).id
        raise Refusal(
            f"{self.mine.name}: line {node.lineno} holds a {type(node).__name__}; a delta holds a docstring, imports, "
            "functions, classes and assignments to a single name."
        )

    def own_text(self, node):
        """The source of a definition of the delta, with the comment right above it."""
        return self.mine.data[self.mine.comment(node) : self.mine.start(node)] + self.mine.text(node)

    def renamed(self, node, name):
        """The source of upstream's function, under the name that keeps it."""
        text = self.theirs.text(node)
        line = self.theirs.lines[node.lineno - 1] + node.col_offset - self.theirs.start(node)
        found = re.compile(rb"def\s+(?=%s\b)" % name.encode()).search(text, line)
        if not isinstance(node, FUNCTIONS) or not found:
            raise Refusal(f"{self.mine.name} mentions {KEPT}{name}, but upstream's {name} is no function.")
        return text[: found.end()] + KEPT.encode() + text[found.end() :]


def _kind(node):
    if isinstance(node, FUNCTIONS):
        return "function" if isinstance(node, ast.FunctionDef) else "coroutine"
    if isinstance(node, ast.ClassDef):
        return "class"
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    single = len(targets) == 1 and isinstance(targets[0], ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign))
    return "assignment" if single and node.value else type(node).__name__


def _without_docstring(body):
    """A body without its docstring."""
    first = body[0] if body else None
    string = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if string else body


def _bound(node):
    """The names that a statement binds in its own scope."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    if isinstance(node, INNER_SCOPES):
        return set()
    names = {name for child in ast.iter_child_nodes(node) for name in _bound(child)}
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        names.add(node.id)
    elif isinstance(node, ast.alias):
        names.add(_imported(node))
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        names.add(node.name)
    return names


def _mentioned(node):
    """The name behind `_upstream_`, where a node mentions one."""
    name = getattr(node, "attr", None) or getattr(node, "id", None)
    return [name.removeprefix(KEPT)] if name and name.startswith(KEPT) else []


def _imported(alias):
    """The name that an import binds."""
    return alias.asname or alias.name.split(".")[0]


def _key(node, alias):
    """What makes two imports the same."""
    return (getattr(node, "level", None), getattr(node, "module", None), alias.name, alias.asname)


def _imports_package(node, name):
    """Whether a statement is an `import name` or an `import name.x`."""
    return isinstance(node, ast.Import) and all(not a.asname for a in node.names if _imported(a) == name)
