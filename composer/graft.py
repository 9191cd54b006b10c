"""Puts the definitions of one delta file into upstream's file of the same path.

It splices bytes at the positions that ``ast`` gives: everything else in the
file stays the same, byte for byte, including line endings.
"""

import ast
import copy
import functools
import hashlib
import io
import itertools
import re
import sys
import tokenize
import warnings
from dataclasses import dataclass, field

from composer import Refusal

KEPT = "_upstream_"
MARKS = ("mark_as_saver", "mark_as_loader", "mark_as_transfer")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
INNER_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
WIDTH = 80  # of upstream's lines


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


@functools.cache  # renewing the lock and comparing patches ask for the same grafts again
def graft(upstream, delta, path):
    r"""Put the definitions of a delta file into upstream's file.

    Arguments
    ---------
    upstream : bytes
        Upstream's source.
    delta : bytes
        A docstring, imports, functions, classes and assignments to a single
        name; those that replace something are in upstream's order. A definition
        replaces upstream's of that name, or is new; the comments right above it
        and behind it come along. A function without a docstring keeps
        upstream's. A class that upstream has too has no bases or decorators:
        its members replace upstream's or are new. An import from the file's own
        module declares a name that upstream defines there: it is checked, not
        grafted. If a class mentions ``self._upstream_<name>``, or the module
        ``_upstream_<name>``, the replaced function is kept under that name.
    path : str
        The path of both inside the package tree.

    Returns
    -------
    Graft
        The grafted source, what was replaced and what is new.

    Raises
    ------
    Refusal
        If the delta has anything else, or if a definition that it replaces is
        not exactly once in upstream's file.

    Example
    -------
    >>> done = graft(b"X = 1\nY = 2\n", b"X = 3\n", "speechbrain/x.py")
    >>> done.source
    b'X = 3\nY = 2\n'
    >>> list(done.replaced)
    ['X']
    """
    try:
        return _Grafting(upstream, delta, path).run()
    except (RecursionError, MemoryError):
        raise Refusal(f"The delta's {path}, or upstream's, is nested too deeply to be read: simplify it.") from None


def fingerprint(definition):
    """Fingerprint the source of a definition.

    Arguments
    ---------
    definition : bytes
        Its source, from the first decorator to its end.

    Returns
    -------
    str
        16 hexadecimal digits: enough to notice a change; the hash of the wheel
        protects against tampering.

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
        Its source, from the first decorator to its end; None if it is not there
        exactly once.

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
    """Parse a file; raises a Refusal with its name if it is not Python in UTF-8."""
    try:
        return _parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refusal(f"{name} cannot be read as Python in UTF-8: {str(error) or type(error).__name__}.") from None


@functools.lru_cache(maxsize=64)  # the next graft into the same file starts from the result of this one
def _parse(data):
    encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
    if encoding != "utf-8":  # the columns of ast count UTF-8 bytes
        raise SyntaxError(f"its encoding is {encoding}")
    data.decode(encoding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes are for the author to fix
        return ast.parse(data)


class _Source:
    """A file as bytes, with its syntax tree, which has the positions of the statements."""

    def __init__(self, data, name):
        self.data = data
        self.name = name
        self.tree = parsed(data, name)
        self.lines = [0]  # where each line starts; bytes.splitlines ends lines where ast does, at LF, CR and CRLF
        for line in data.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    @functools.cached_property
    def ends(self):
        """The last lines of statements: one that starts with # is the end of a string, not a comment."""
        ends, nodes = set(), [self.tree]
        while nodes:
            node = nodes.pop()
            ends.add(getattr(node, "end_lineno", None))
            for name in ("body", "orelse", "finalbody", "handlers", "cases"):  # what may have statements
                nodes += getattr(node, name, ()) if isinstance(getattr(node, name, None), list) else ()
        return ends

    def first_line(self, node):
        return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])

    def start(self, node):
        return self.lines[self.first_line(node) - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        """The source of a definition with its decorators; raises a Refusal if other code is on its lines."""
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
        return [node for node in body if name in _remembered(node, "bound", _bound)]

    def docstring(self, node):
        """Where the docstring of a function is, with the blank lines behind it; None without one, or if it shares its line."""
        if not isinstance(node, FUNCTIONS) or _without_docstring(node.body) is node.body:
            return None
        start, end = self.lines[node.body[0].lineno - 1], self.lines[node.body[0].end_lineno]
        if self.data[start : self.start(node.body[0])].strip() or self.data[self.end(node.body[0]) : end].strip():
            return None
        return start, re.compile(rb"(?:[ \t]*\r?\n)*").match(self.data, end).end()

    def below_header(self, node):
        """Where the line below the header of a function starts; None if its body starts on the header's last line."""
        line = self.first_line(node.body[0])
        if self.data[self.lines[line - 1] : self.start(node.body[0])].strip():
            return None
        while not (above := self.data[self.lines[line - 2] : self.lines[line - 1]].strip()) or above.startswith(b"#"):
            line -= 1
        return self.lines[line - 1]


class _Grafting:
    """One graft: `edits` collects what to splice into upstream's bytes, `wanted` the trees that the result must have."""

    def __init__(self, upstream, delta, path):
        self.mine = _Source(delta, f"the delta's {path}")
        self.theirs = _Source(upstream, f"upstream's {path}")
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.done = Graft(upstream)
        self.edits = []  # (start, end, the new bytes)
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
        # From the back, so that positions stay valid. An insertion sorts before the replacement that it precedes, and two
        # insertions at one place keep their order.
        order = sorted(range(len(self.edits)), key=lambda number: (*self.edits[number][:2], number))
        for start, end, text in (self.edits[number] for number in reversed(order)):
            text = text.replace(b"\r\n", b"\n").replace(b"\n", newline)
            self.done.source = self.done.source[:start] + text + self.done.source[end:]
        found = _Source(self.done.source, f"the graft of {self.mine.name}").tree.body
        if self.dumped(found) != self.dumped(wanted):
            raise Refusal(f"{self.mine.name} cannot be put into upstream's file in this layout: lay it out differently.")
        return self.done

    def dumped(self, body):
        """The statements of a body in any order, with one import for each name."""
        return sorted(self.dump(part) for node in body for part in _single_imports(node))

    def dump(self, node):
        if getattr(node, "name", None) not in self.merged:
            return _remembered(node, "dump", ast.dump)
        bare = _copy(node)
        bare.body = []
        return f"{ast.dump(bare)} {sorted(_remembered(member, 'dump', ast.dump) for member in node.body)}"

    def body(self, ours, upstreams, end, gap, prefix, mentions):
        """Graft the definitions of a module or a class, and return the statements that it must then have.

        `ours` are the delta's statements and `upstreams` upstream's. `end` is where a new definition after the last one
        goes, `gap` is what separates two definitions, `prefix` is "Class." in a class. `mentions` are the names that the
        delta uses there: `_upstream_x` among them asks to keep upstream's `x`.

        A new definition waits until the next one that replaces something, and goes in before it; the rest goes to the end.
        """
        wanted = dict(enumerate([node] for node in upstreams))  # by the place of the statement in upstream's body
        mentions = {name.removeprefix(KEPT) for name in mentions if name.startswith(KEPT)}
        waiting = []
        seen = {}  # by name, the place of what it replaces; None for a new one
        for node in ours:
            name = self.name(node)
            if name in seen or name.startswith(KEPT):
                raise Refusal(
                    f"{self.mine.name}: {prefix}{name} is there twice, or takes the name of a kept function; keep only one."
                )
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
                wanted[number] = self.replace(node, old, gap, name in mentions and (name, upstreams, prefix))
                mentions.discard(name)
            if waiting:
                start = self.theirs.comment(old)
                self.edits.append((start, start, self.joined(waiting, gap) + gap))
                wanted[number] = waiting + wanted[number]
                waiting = []
        for name in sorted(mentions):
            raise Refusal(
                f"{self.mine.name} mentions {prefix}{KEPT}{name}, but does not replace a function {prefix}{name} there."
            )
        if waiting:
            end = self.theirs.line_end(end)
            lead, trail = (gap, b"") if self.theirs.data.strip() else (b"", b"\n")
            self.edits.append((end, end, lead + self.joined(waiting, gap) + trail))
        return [node for nodes in wanted.values() for node in nodes] + waiting

    def joined(self, nodes, gap):
        """The source of new definitions, as far apart as they are in the delta if nothing is between them there."""
        mine, text = self.mine, self.own_text(nodes[0])
        for previous, node in itertools.pairwise(nodes):
            between = mine.data[mine.line_end(mine.end(previous)) : mine.comment(node)]
            text += (gap if between.strip() else between) + self.own_text(node)
        return text

    def replace(self, node, old, gap, keep):
        """Replace a definition; returns the statements that must then be there.

        A function without a docstring gets upstream's. If upstream's function is kept, it follows the new one, without that
        docstring, so that a diff shows signature, docstring and body where they were.
        """
        mine, theirs = self.mine, self.theirs
        text, nodes = self.own_text(node, old), [node]
        span, place = theirs.docstring(old), None
        if span and isinstance(node, FUNCTIONS) and _without_docstring(node.body) is node.body:
            place = mine.below_header(node)
        if place is not None:
            behind = place - mine.end(node)  # counted from the end, since the text may start with a comment
            trail = len(text) - (mine.line_end(mine.end(node)) - mine.end(node))
            at = trail + behind
            text = text[:at] + theirs.data[slice(*span)] + text[at:]
            nodes = [_copy(node)]
            nodes[0].body = [old.body[0], *node.body]
        if keep:
            kept, body = self.keep(old, *keep)
            if place is not None:
                kept.body = old.body[1:]
                moved = len(body) - len(theirs.text(old))  # what changed is before the docstring
                cut = [position - theirs.start(old) + moved for position in span]
                body = body[: cut[0]] + body[cut[1] :]
            text, nodes = text + gap + body, [*nodes, kept]
        self.edits.append((theirs.start(old), theirs.line_end(theirs.end(old)), text))
        return nodes

    def keep(self, old, name, upstreams, prefix):
        """Rename upstream's function, to keep it next to its replacement; returns its tree and its text."""
        if not isinstance(old, FUNCTIONS) or name in self.kept or self.theirs.binders(KEPT + name, upstreams):
            raise Refusal(
                f"{self.mine.name}: {prefix}{KEPT}{name} cannot be kept: upstream's {name} is not a function, or that name is "
                "taken (two classes of a file cannot both keep it, since one may inherit from the other)."
            )
        self.kept.add(name)
        renamed = _copy(old)
        renamed.name = KEPT + name
        text, start = self.theirs.text(old), self.theirs.start(old)
        line = self.theirs.lines[old.lineno - 1] + old.col_offset - start
        at = re.compile(rb"(async[\s\\]+)?def[\s\\]+").match(text, line).end()
        text = text[:at] + KEPT.encode() + text[at:]
        # Upstream's register_checkpoint_hooks takes the last method that has a mark; that has to be the new one
        marks = [each for each in old.decorator_list if ast.unparse(each).split(".")[-1] in MARKS]
        renamed.decorator_list = [each for each in old.decorator_list if each not in marks]
        for each in reversed(marks):
            cut = [self.theirs.lines[number] + old.col_offset - start for number in (each.lineno - 1, each.end_lineno)]
            text = text[: cut[0]] + text[cut[1] :]
        return renamed, text

    def members(self, ours, there):
        """Graft the members of a class that both have, and return the resulting class."""
        if ours.bases or ours.keywords or ours.decorator_list or getattr(ours, "type_params", None):
            raise Refusal(f"{self.mine.name}: upstream has class {ours.name} too; write it bare, without bases or decorators.")
        members = _without_docstring(ours.body)
        sides = ((self.theirs, there), (self.mine, ours))
        margins = [side.data[side.lines[c.body[0].lineno - 1] :][: c.body[0].col_offset] for side, c in sides]
        if margins[0].strip() or margins[0] != margins[1]:
            raise Refusal(
                f"{self.mine.name}: the members of class {ours.name} are indented by {margins[1]}, upstream's by {margins[0]}; "
                "use the same white space."
            )
        self.merged.add(ours.name)
        mentions = {node.attr for node in ast.walk(ours) if isinstance(node, ast.Attribute)}
        gap = b"\n\n" + margins[0]
        merged = _copy(there)
        merged.body = self.body(members, there.body, self.theirs.end(there), gap, f"{ours.name}.", mentions)
        return merged

    def imports(self, ours):
        """Graft the imports that upstream lacks into its leading block of imports, and return them."""
        top = self.theirs.tree.body
        present = {_key(node, alias) for node in top if isinstance(node, IMPORTS) for alias in node.names}
        lacking = []
        for node in ours:
            where = f"{self.mine.name}: line {node.lineno}"
            module = getattr(node, "module", None)
            if module == "__future__" or any(alias.name == "*" for alias in node.names):
                raise Refusal(f"{where}: __future__ and star imports cannot be grafted.")
            if module == self.module and not node.level:
                for alias in node.names:
                    if alias.asname or not self.theirs.binders(alias.name.removeprefix(KEPT), top):
                        raise Refusal(
                            f"{where}: {alias.name} is imported from this module itself, but upstream does not have it there."
                        )
                continue
            names = [alias for alias in node.names if _key(node, alias) not in present]
            for alias in names:
                name = _imported(alias)
                package = isinstance(node, ast.Import) and not alias.asname  # `import a.b` beside `import a` binds the same a
                if any(not (package and _imports_package(n, name)) for n in self.theirs.binders(name, top)):
                    raise Refusal(
                        f"{where}: upstream binds {name} differently; import it under another name, or from {self.module} if "
                        "you mean upstream's."
                    )
            if names:
                lacking.append(_copy(node))
                lacking[-1].names = names
        self.place(lacking)
        return lacking

    def place(self, imports):
        """Put imports where upstream's linter expects them: sorted, in sections, names of one module in one statement."""
        top = self.theirs.tree.body
        leading = list(itertools.takewhile(lambda node: isinstance(node, IMPORTS), _without_docstring(top)))
        widened = {}
        block = [(_section(node), node, None) for node in leading]
        for node in imports:
            beside = [other for other in leading if isinstance(node, ast.ImportFrom) and _same_module(node, other)]
            if beside and b"#" not in self.theirs.text(beside[0]):
                widened.setdefault(beside[0], list(beside[0].names)).extend(node.names)
                continue
            earlier = [i for i, (section, *_) in enumerate(block) if section <= _section(node)]
            block.insert(earlier[-1] + 1 if earlier else 0, (_section(node), None, _import_text(node, node.names)))
        for node, names in widened.items():
            self.edits.append((self.theirs.start(node), self.theirs.end(node), _import_text(node, names)))
        previous = None
        for is_new, run in itertools.groupby(range(len(block)), key=lambda i: (block[i][1] is None, block[i][0][0])):
            run = list(run)
            if not is_new[0]:
                previous = block[run[-1]]
                continue
            following = block[run[-1] + 1] if run[-1] + 1 < len(block) else None
            section, lines = is_new[1], b"\n".join(block[i][2] for i in run)
            if following and following[1] and following[0][0] == section and not (previous and previous[0][0] == section):
                at = self.theirs.comment(following[1])
                self.edits.append((at, at, lines + b"\n"))
            elif previous:
                at = self.theirs.line_end(self.theirs.end(previous[1]))
                self.edits.append((at, at, (b"\n" if previous[0][0] == section else b"\n\n") + lines))
            else:
                node = following and following[1]
                docstring = top[: len(top) - len(_without_docstring(top))]
                if docstring and not node:
                    at = self.theirs.line_end(self.theirs.end(docstring[0]))
                    self.edits.append((at, at, b"\n\n" + lines))
                else:
                    at = self.theirs.comment(node or top[0]) if top else 0
                    self.edits.append((at, at, lines + b"\n\n"))

    def name(self, node):
        """The name that a statement of the delta defines."""
        name = _defined(node)
        if name is None:
            raise Refusal(
                f"{self.mine.name}: line {node.lineno} ({_kind(node)}): a delta has only a docstring, imports, functions, "
                "classes and assignments to a single name."
            )
        return name

    def own_text(self, node, old=None):
        """The source of a definition of the delta, with the comment behind it, and that above it unless the old one has it."""
        mine, theirs = self.mine, self.theirs
        above = mine.data[mine.comment(node) : mine.start(node)]
        if old and above:
            there = theirs.data[theirs.comment(old) : theirs.start(old)]
            lines, wanted = ([line.strip() for line in comment.splitlines()] for comment in (there, above))
            above = b"" if lines[-len(wanted) :] == wanted else above
        return above + mine.text(node) + mine.data[mine.end(node) : mine.line_end(mine.end(node))]


def _defined(node):
    """The name that a statement defines, None if a delta cannot define it in this way."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value else None


def _kind(node):
    """What kind of statement it is, in words for a message."""
    if isinstance(node, ast.FunctionDef):
        return "function"
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and _defined(node):
        return "assignment to a single name"
    return type(node).__name__


def _remembered(node, name, function):
    """The result of a function for a statement, cached in the statement for the next graft into the same file."""
    memory = vars(node).setdefault("memory", {})
    if name not in memory:
        memory[name] = function(node)
    return memory[name]


def _copy(node):
    """A copy that can be changed, without cached results."""
    node = copy.copy(node)
    vars(node).pop("memory", None)
    return node


def _single_imports(node):
    """An import as one statement for each name; any other statement as it is."""
    if not isinstance(node, IMPORTS):
        return [node]
    parts = [_copy(node) for _ in node.names]
    for part, alias in zip(parts, node.names):
        part.names = [alias]
    return parts


def _same_module(node, other):
    return isinstance(other, ast.ImportFrom) and (node.module, node.level) == (other.module, other.level)


def _section(node):
    """The key by which upstream sorts imports: standard library, other packages, its own; `import` before `from`."""
    module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
    root = module.partition(".")[0]
    section = 0 if root in sys.stdlib_module_names else 2 if root == "speechbrain" or getattr(node, "level", 0) else 1
    return section, isinstance(node, ast.ImportFrom), module.lower()


def _import_text(node, aliases):
    """An import as upstream lays it out: on one line if it fits, else one name a line; constants, classes, then the rest."""

    def rank(alias):
        name = alias.name
        return (0 if len(name) > 1 and name.isupper() else 1 if name[:1].isupper() else 2, name.lower())

    node = _copy(node)
    node.names = sorted(aliases, key=rank)
    text = ast.unparse(node)
    if len(text) > WIDTH and isinstance(node, ast.ImportFrom):
        head, names = text.partition(" import ")[0], [ast.unparse(alias) for alias in node.names]
        text = f"{head} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
    return text.encode()


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
