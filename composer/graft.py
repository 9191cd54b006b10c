"""Puts the definitions of one delta file into upstream's file of the same path.

Bytes are spliced at the positions that ``ast`` gives: whatever is not replaced
stays byte for byte, line endings included.
"""

import ast
import copy
import hashlib
import io
import re
import tokenize
import warnings
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


def graft(upstream, delta, path, left_out=()):
    r"""Put the definitions of a delta file into upstream's file.

    Arguments
    ---------
    upstream : bytes
        Upstream's source.
    delta : bytes
        A docstring, imports, functions, classes and assignments to a single
        name, those that replace something in upstream's order. A definition
        replaces upstream's of that name, or is new; the comments right above it
        and behind it come along. A class that upstream has too is written bare:
        its members replace upstream's or are new. An import from the file's own
        module declares a name that upstream provides there: it is checked, not
        grafted. Where a class mentions ``self._upstream_<name>``, or the module
        ``_upstream_<name>``, the replaced function is kept under that name.
    path : str
        The path of both inside the package tree.
    left_out : collection of str
        Names of definitions of the delta that are not grafted, nor the imports
        that only they use.

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
    return _Grafting(upstream, delta, path, left_out).run()


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


def definition(source, name):
    r"""Find a definition.

    Arguments
    ---------
    source : bytes
        The source of a module.
    name : str
        ``name`` or ``Class.name``.

    Returns
    -------
    bytes
        Its source, from the first decorator to its end; None where it does not
        stand exactly once.

    Example
    -------
    >>> definition(b"class C:\n    x = 1\n", "C.x")
    b'x = 1'
    """
    module = _Source(source, name)
    body = module.tree.body
    for part in name.split("."):
        there = module.binders(part, body)
        if len(there) != 1:
            return None
        body = getattr(there[0], "body", [])
    return module.text(there[0])


def parsed(data, name):
    """Parse a file.

    Arguments
    ---------
    data : bytes
        Its content.
    name : str
        What to call it in the error.

    Returns
    -------
    ast.Module
        Its tree.

    Raises
    ------
    Refusal
        If it is not Python in UTF-8.

    Example
    -------
    >>> parsed(b"X = 1", "x.py").body[0].lineno
    1
    """
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        if encoding != "utf-8":  # the columns of ast count UTF-8 bytes
            raise SyntaxError(f"its encoding is {encoding}")
        data.decode(encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of an escape is the author's business
            return ast.parse(data, name)
    except (SyntaxError, ValueError) as error:
        raise Refusal(f"{name} cannot be read as Python in UTF-8: {error}.") from None


class _Source:
    """A file as bytes, with the tree that says where its statements stand."""

    def __init__(self, data, name):
        self.data = data
        self.name = name
        self.tree = parsed(data, name)
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
        if getattr(node, "decorator_list", None) and self.data[start : start + 1] != b"@":
            raise Refusal(f"{self.name}: a decorator above line {node.lineno} does not start on the line of its @.")
        return self.data[start:end]

    def comment(self, node):
        """Where the comment right above a definition starts, or the definition itself."""
        line = self.first_line(node)
        while line > 1 and line - 1 not in self.ends:
            above = self.data[self.lines[line - 2] : self.lines[line - 1]]
            mark = above[node.col_offset : node.col_offset + 2]
            if above[: node.col_offset].strip() or not mark.startswith(b"#") or mark == b"#!":
                break
            line -= 1
        return self.lines[line - 1] + node.col_offset

    def line_end(self, position):
        return re.compile(rb"[\r\n]|\Z").search(self.data, position).start()

    def binders(self, name, body):
        """The statements of a body that bind a name."""
        return [node for node in body if name in _bound(node)]


class _Grafting:
    def __init__(self, upstream, delta, path, left_out):
        self.mine = _Source(delta, f"the delta's {path}")
        _leave_out(self.mine.tree, left_out)
        self.theirs = _Source(upstream, f"upstream's {path}")
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.done = Graft(upstream)
        self.edits = []  # (start, end, bytes to stand there)
        self.merged = set()
        self.kept = set()

    def run(self):
        body = _without_docstring(self.mine.tree.body)
        top = self.theirs.tree.body
        upstream = self.theirs.data
        wanted = self.imports([node for node in body if isinstance(node, IMPORTS)])
        mentions = {node.id for node in ast.walk(self.mine.tree) if isinstance(node, ast.Name)}
        definitions = [node for node in body if not isinstance(node, IMPORTS)]
        wanted += self.body(definitions, top, len(upstream.rstrip()), b"\n\n\n", "", mentions)
        newline = b"\r\n" if b"\r\n" in upstream else b"\n"
        # From the back, so that positions stay true. An insertion sorts before the replacement that it precedes, and two
        # insertions at one place keep their order.
        order = sorted(range(len(self.edits)), key=lambda number: (*self.edits[number][:2], number))
        for start, end, text in (self.edits[number] for number in reversed(order)):
            text = text.replace(b"\r\n", b"\n").replace(b"\n", newline)
            self.done.source = self.done.source[:start] + text + self.done.source[end:]
        found = _Source(self.done.source, f"the graft of {self.mine.name}").tree.body
        if self.dumped(found) != self.dumped(wanted):
            raise Refusal(f"{self.mine.name} cannot be put into upstream's file as it is laid out there: lay it out otherwise.")
        return self.done

    def dumped(self, body):
        """What a body holds, whatever the order."""
        nodes = (_sorted(node) if getattr(node, "name", None) in self.merged else node for node in body)
        return sorted(map(ast.dump, nodes))

    def body(self, ours, upstreams, end, gap, prefix, mentions):
        """Graft the definitions of a module or a class, and return the statements that it is to hold then.

        `gap` parts two definitions, `end` is where one may follow the last, `mentions` are the names that may ask for
        upstream's own function to be kept.
        """
        wanted = dict(enumerate([node] for node in upstreams))
        mentions = {name.removeprefix(KEPT) for name in mentions if name.startswith(KEPT)}
        waiting = []  # new definitions go before the replaced one that they precede
        seen = {}
        for node in ours:
            name = self.name(node)
            if name in seen or name.startswith(KEPT):
                raise Refusal(f"{self.mine.name}: {prefix}{name} stands twice, or takes the name of a kept function; keep one.")
            there = self.theirs.binders(name, upstreams)
            if not there:
                seen[name] = None
                waiting.append(node)
                self.done.added.append(prefix + name)
                continue
            old = there[0]
            if len(there) > 1 or _kind(old) != _kind(node) or _defined(old) != name:
                raise Refusal(
                    f"{self.theirs.name} binds {prefix}{name} {len(there)} time(s), at line {old.lineno} by {_kind(old)}, not "
                    f"by exactly one {_kind(node)}: the delta cannot replace it; replace what uses it instead."
                )
            number = seen[name] = upstreams.index(old)
            if number < max(n for n in seen.values() if n is not None):
                raise Refusal(f"{self.mine.name}: upstream has {prefix}{name} before those above it; keep upstream's order.")
            if isinstance(node, ast.ClassDef) and not prefix:
                wanted[number] = [self.members(node, old)]
            else:
                self.done.replaced[prefix + name] = fingerprint(self.theirs.text(old))
                span = self.theirs.start(old), self.theirs.line_end(self.theirs.end(old))
                kept, text = self.keep(name, old, upstreams, prefix) if name in mentions else ([], None)
                mentions.discard(name)
                self.edits.append((*span, text + gap + self.own_text(node) if kept else self.own_text(node, old)))
                wanted[number] = [*kept, node]
            if waiting:
                start = self.theirs.comment(old)
                self.edits.append((start, start, b"".join(self.own_text(new) + gap for new in waiting)))
                wanted[number] = waiting + wanted[number]
                waiting = []
        for name in sorted(mentions):
            raise Refusal(f"{self.mine.name} mentions {prefix}{KEPT}{name}, but replaces no function {prefix}{name} there.")
        if waiting:
            end = self.theirs.line_end(end)
            lead, trail = (gap, b"") if self.theirs.data.strip() else (b"", b"\n")
            self.edits.append((end, end, lead + gap.join(map(self.own_text, waiting)) + trail))
        return [node for nodes in wanted.values() for node in nodes] + waiting

    def keep(self, name, old, upstreams, prefix):
        """Rename upstream's function so that it stays beside the one that replaces it; returns it as tree and as text."""
        if not isinstance(old, FUNCTIONS) or name in self.kept or self.theirs.binders(KEPT + name, upstreams):
            raise Refusal(
                f"{self.mine.name}: {prefix}{KEPT}{name} cannot be kept: upstream's {name} is no function, or that name is "
                "taken (two classes of a file cannot both keep it, since one may inherit from the other)."
            )
        self.kept.add(name)
        renamed = copy.copy(old)
        renamed.name = KEPT + name
        text = self.theirs.text(old)
        line = self.theirs.lines[old.lineno - 1] + old.col_offset - self.theirs.start(old)
        at = re.compile(rb"(async[\s\\]+)?def[\s\\]+").match(text, line).end()
        return [renamed], text[:at] + KEPT.encode() + text[at:]

    def members(self, ours, there):
        """Graft the members of a class that both have, and return the class as it is then."""
        if ours.bases or ours.keywords or ours.decorator_list or getattr(ours, "type_params", None):
            raise Refusal(f"{self.mine.name}: upstream has class {ours.name} too; write it bare, without bases or decorators.")
        members = _without_docstring(ours.body)
        sides = ((self.theirs, there), (self.mine, ours))
        margins = [side.data[side.lines[c.body[0].lineno - 1] :][: c.body[0].col_offset] for side, c in sides]
        if margins[0].strip() or margins[0] != margins[1]:
            raise Refusal(
                f"{self.mine.name}: the members of class {ours.name} are behind {margins[1]}, upstream's behind {margins[0]}; "
                "these must be the same white space."
            )
        self.merged.add(ours.name)
        mentions = {node.attr for node in ast.walk(ours) if isinstance(node, ast.Attribute)}
        gap = b"\n\n" + margins[0]
        merged = copy.copy(there)
        merged.body = self.body(members, there.body, self.theirs.end(there), gap, f"{ours.name}.", mentions)
        return merged

    def imports(self, ours):
        """Graft the imports that upstream lacks, after its leading block of imports, and return them."""
        top = self.theirs.tree.body
        present = {_key(node, alias) for node in top if isinstance(node, IMPORTS) for alias in node.names}
        lacking = []
        for node in ours:
            where = f"{self.mine.name}: line {node.lineno}"
            module = getattr(node, "module", None)
            if module == "__future__" or any(alias.name == "*" for alias in node.names):
                raise Refusal(f"{where}: neither __future__ nor star imports can be grafted.")
            if module == self.module and not node.level:
                for alias in node.names:
                    if alias.asname or not self.theirs.binders(alias.name.removeprefix(KEPT), top):
                        raise Refusal(
                            f"{where}: {alias.name} is imported from this module itself, where upstream lacks that name."
                        )
                continue
            names = [alias for alias in node.names if _key(node, alias) not in present]
            for alias in names:
                name = _imported(alias)
                package = isinstance(node, ast.Import) and not alias.asname  # `import a.b` beside `import a` binds the same a
                if any(not (package and _imports_package(n, name)) for n in self.theirs.binders(name, top)):
                    raise Refusal(
                        f"{where}: upstream binds {name} otherwise; import it under another name, or from {self.module} if "
                        "upstream's is meant."
                    )
            if names:
                lacking.append(copy.copy(node))
                lacking[-1].names = names
        lines = b"\n".join(ast.unparse(node).encode() for node in lacking)
        if lines:
            docstring = top[: len(top) - len(_without_docstring(top))]
            leading = None
            for node in top:
                if not isinstance(node, IMPORTS) and node not in docstring:
                    break
                leading = node
            at = self.theirs.line_end(self.theirs.end(leading)) if leading else self.theirs.comment(top[0]) if top else 0
            self.edits.append((at, at, b"\n" + lines if leading else lines + b"\n"))
        return lacking

    def name(self, node):
        """The name that a statement of the delta defines."""
        name = _defined(node)
        if name is None:
            raise Refusal(
                f"{self.mine.name}: line {node.lineno} ({_kind(node)}): a delta holds a docstring, imports, functions, classes "
                "and assignments to a single name."
            )
        return name

    def own_text(self, node, old=None):
        """The source of a definition of the delta, with the comments behind it and, unless the old one has them, above it."""
        mine, theirs = self.mine, self.theirs
        above = mine.data[mine.comment(node) : mine.start(node)]
        if old and above:
            there = theirs.data[theirs.comment(old) : theirs.start(old)]
            lines, wanted = ([line.strip() for line in comment.splitlines()] for comment in (there, above))
            above = b"" if lines[-len(wanted) :] == wanted else above
        return above + mine.text(node) + mine.data[mine.end(node) : mine.line_end(mine.end(node))]


def _defined(node):
    """The name that a statement defines in a way that a delta can."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value else None


def _kind(node):
    """What a statement is, for the eyes of whoever wrote it."""
    if isinstance(node, ast.FunctionDef):
        return "function"
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and _defined(node):
        return "assignment to a single name"
    return type(node).__name__


def _sorted(node):
    """A class with its members in an order of their own."""
    node = copy.copy(node)
    node.body = sorted(node.body, key=ast.dump)
    return node


def _leave_out(tree, names):
    """Take definitions out of the tree of a delta file, and the imports that only they use."""
    gone = []

    def rest(body, prefix=""):
        left = []
        for node in body:
            name = f"{prefix}{_defined(node)}"
            if isinstance(node, ast.ClassDef) and any(other.startswith(f"{name}.") for other in names):
                node.body = rest(node.body, f"{name}.")
                left += [node] if _without_docstring(node.body) else []
            else:
                (gone if name in names else left).append(node)
        return left

    def used(nodes):
        return {node.id for outer in nodes for node in ast.walk(outer) if isinstance(node, ast.Name)}

    tree.body = rest(tree.body)
    spent = used(gone) - used(tree.body)
    for node in [node for node in tree.body if isinstance(node, IMPORTS)]:
        node.names = [alias for alias in node.names if _imported(alias) not in spent]
        if not node.names:
            tree.body.remove(node)


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
    elif isinstance(node, ast.MatchMapping):
        names.add(node.rest)
    return names


def _imported(alias):
    """The name that an import binds."""
    return alias.asname or alias.name.split(".")[0]


def _key(node, alias):
    """What makes two imports the same."""
    return (getattr(node, "level", None), getattr(node, "module", None), alias.name, alias.asname)


def _imports_package(node, name):
    """Whether a statement is an `import name` or an `import name.x`."""
    return isinstance(node, ast.Import) and all(not a.asname for a in node.names if _imported(a) == name)
