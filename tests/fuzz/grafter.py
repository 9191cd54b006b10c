#!/usr/bin/env python3
"""Grafts random deltas into random modules, and prints what went wrong.

> python tests/fuzz/grafter.py [NUMBER OF GRAFTS] [SEED]

A graft that is not refused has to parse. It has to contain each definition of the delta, the docstrings of those that they
replace, and every other line of upstream's in its order. A second graft of the same delta has to give the same, or be refused.
"""

import ast
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from composer import Refusal
from composer.graft import graft

PATH = "speechbrain/x.py"
# {n} is a name, {v} a number that is nowhere else
DEFINITIONS = (
    "def {n}():\n    return {v}",
    "async def {n}(a, *b, c=1):\n    # within\n    return {v}  # behind",
    "@deco\n@deco(\n    {v}\n)\ndef {n}(): pass",
    "def {n}():\n    '''Doc.\n\n# no comment, {v}\n    '''",
    "def {n}():\n    '''Doc {v}.'''\n\n    # within\n    return {v}",
    "{n} = {v}",
    "{n}: int = {v}",
    "{n} = (\n    {v},\n)",
    "{n} = '''\n# no comment, {v}'''",
    "{n} = 'µ' + \"{v}\"  # µ",
    "def {n}(): return {v}; pass",
)
CLASS = "class {n}(object):"
LINES = (
    "# of {v}",
    "",
    "",
    "if {v}:\n    pass",
    "print({v})",
    "for _ in {v}: pass",
    "import os{v}",
    "from a{v} import b{v} as c{v}",
    "\x0c",
)
MINE = (
    "def {n}():\n    return 'mine {v}'",
    "{n} = 'mine {v}'",
    "@deco\ndef {n}(x):\n    return 'mine {v}', {k}",
    "{n}: str = 'mine {v}'",
)


def indented(text):
    """A text as members of a class."""
    return "\n".join(f"    {line}" if line.strip() else line for line in text.split("\n"))


def module(draw, names):
    """A random module of upstream's, and the names of what it defines, by scope."""
    blocks, defined = ['"""A module."""'] * draw.randint(0, 1), {"": []}

    def scope(key, count):
        found = []
        for name in draw.sample(names, count):
            found += [line.format(v=draw.getrandbits(40)) for line in draw.choices(LINES, k=draw.randint(0, 2))]
            found.append(draw.choice(DEFINITIONS).format(n=name, v=draw.getrandbits(40)))
            defined[key].append(name)
        return found

    for _ in range(draw.randint(0, 3)):
        blocks += scope("", draw.randint(0, 2))
        if draw.random() < 0.5:
            name = f"C{len(defined)}"
            defined[name] = []
            members = scope(name, draw.randint(1, 4))
            blocks += [CLASS.format(n=name), *map(indented, members)]
    return "\n".join(blocks) + "\n" * draw.randint(0, 2), defined


def delta(draw, names, defined):
    """A random delta for a module."""

    def scope(known):
        chosen = [name for name in known if draw.random() < 0.4]
        for name in draw.sample(names, draw.randint(0, 2)):
            if name not in known:
                chosen.insert(draw.randint(0, len(chosen)), name)
        for name in dict.fromkeys(chosen):
            if draw.random() < 0.3:
                yield f"# why {draw.getrandbits(40)}"
            kept = f"_upstream_{name}" if draw.random() < 0.2 else "0"
            yield draw.choice(MINE).format(n=name, v=draw.getrandbits(40), k=kept)

    blocks = ['"""For the reader."""'] * draw.randint(0, 1)
    blocks += [f"import os{draw.getrandbits(40)}" for _ in range(draw.randint(0, 2))]
    for key, known in defined.items():
        members = list(scope(known))
        if key and members:
            blocks += [f"class {key}:", *map(indented, members)]
        elif not key:
            blocks += members
    return "\n".join(blocks) + "\n"


def defined_by(node):
    """The names that a statement defines."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
    return [name for name in names if name]


def statements(source):
    """The statements of a module and of its classes, each with the prefix of the names that it defines."""
    for node in ast.parse(source).body:
        for member in node.body if isinstance(node, ast.ClassDef) else [node]:
            yield f"{node.name}." if isinstance(node, ast.ClassDef) else "", member


def definitions(source):
    """The names that a module and its classes define, with the tree of each, without the docstrings of functions."""
    found = {}
    for prefix, node in statements(source):
        if has_docstring(node):
            del node.body[0]
        found.update({prefix + name: ast.dump(node) for name in defined_by(node)})
    return found


def has_docstring(node):
    """Whether a statement is a function with a docstring."""
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None


def docstrings(source):
    """The docstrings of the functions that have one, by name."""
    return {
        prefix + node.name: ast.get_docstring(node, clean=False) for prefix, node in statements(source) if has_docstring(node)
    }


def untouched(source, names):
    """The lines of a module outside these definitions."""
    gone = set()
    for prefix, node in statements(source):
        if names.intersection(prefix + name for name in defined_by(node)):
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
            gone.update(range(first, node.end_lineno + 1))
    return [line for number, line in enumerate(source.splitlines(), 1) if number not in gone and line.strip()]


def problem(upstream, mine):
    """What is wrong with a graft; None if nothing is, "refused" if it was refused."""
    try:
        done = graft(upstream, mine, PATH)
    except Refusal:
        return "refused"
    before, after, wanted = (definitions(source) for source in (upstream, done.source, mine))
    if any(after.get(name) != tree for name, tree in wanted.items()):
        return "a definition of the delta is not there"
    if any(after.get(name) != tree for name, tree in before.items() if name not in wanted):
        return "another definition changed"
    if any(docstrings(done.source).get(name) != text for name, text in docstrings(upstream).items()):
        return "a docstring of upstream's is gone"
    if set(done.replaced) != set(before) & set(wanted) or set(done.added) != set(wanted) - set(before):
        return "the report of what was replaced and added is wrong"
    lines = iter(done.source.splitlines())
    if not all(line in lines for line in untouched(upstream, set(done.replaced))):
        return "a line of upstream's is gone, or moved"
    try:
        again = graft(done.source, mine, PATH)
    except Refusal:
        return None
    return None if again.source == done.source else "a second graft changes it"


def main(count=20_000, seed=0):
    """Try the grafts; returns the exit status."""
    draw = random.Random(seed)
    names = [f"n{number}" for number in range(12)]
    tried = wrong = refused = 0
    while tried < count and wrong < 5:
        tried += 1
        source, defined = module(draw, names)
        newline = draw.choice(("\n", "\n", "\r\n", "\r"))
        upstream, mine = source.replace("\n", newline).encode(), delta(draw, names, defined).encode()
        try:
            ast.parse(upstream), ast.parse(mine)
        except SyntaxError as error:
            sys.exit(f"the fuzzer did not write Python: {error}\n{source}\n{mine.decode()}")
        found = problem(upstream, mine)
        refused += found == "refused"
        if found not in (None, "refused"):
            wrong += 1
            print(f"{found}, from upstream's\n{upstream!r}\nand the delta\n{mine!r}\n")
    print(f"{tried} grafts, seed {seed}: {refused} refused, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
