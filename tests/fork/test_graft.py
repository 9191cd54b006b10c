"""The grafter: how it changes a file, and what it refuses."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer import Refusal
from composer.graft import fingerprint, graft

PATH = "speechbrain/x.py"

GRAFTS = {
    "a function is replaced with the comment behind it, what surrounds it stays": (
        "import os\n\n# above\ndef f(x):\n    return 1  # odd\n# below\nY = 2\n",
        '"""For the reader."""\n\n\ndef f(x):\n    return 3\n',
        "import os\n\n# above\ndef f(x):\n    return 3\n# below\nY = 2\n",
    ),
    "decorators go with their definition": (
        "@a\n@b(\n    1\n)\ndef f(): pass\n",
        "@c\ndef f():\n    return 1\n",
        "@c\ndef f():\n    return 1\n",
    ),
    "the comment right above comes along": ("X = 1\n", "# why\n# indeed\nX = 2\n", "# why\n# indeed\nX = 2\n"),
    "unless it is there already": ("# odd\n# why\nX = 1\n", "# why\nX = 2\n", "# odd\n# why\nX = 2\n"),
    "the end of a comment is another comment": ("# # why\nX = 1\n", "# why\nX = 2\n", "# # why\n# why\nX = 2\n"),
    "the end of a string is not a comment": ('A = """\n# text"""\nX = 1\n', "X = 2\n", 'A = """\n# text"""\nX = 2\n'),
    "an annotated assignment replaces a plain one": ("X = 1\n", "X: int = 2\n", "X: int = 2\n"),
    "columns count bytes": ("Z = 'µµ'  # µ\nX = 'µ'  # µ\n", "X = 'ö'  # ö\n", "Z = 'µµ'  # µ\nX = 'ö'  # ö\n"),
    "CRLF stays CRLF": (
        "def f():\r\n    pass\r\nY = 1\r\n",
        "def f():\n    return 1\n",
        "def f():\r\n    return 1\r\nY = 1\r\n",
    ),
    "a lone CR ends a line": ("A = 1\rX = 1\rB = 2\r", "X = 3\n", "A = 1\rX = 3\rB = 2\r"),
    "a helper goes before the definition that it precedes": (
        "A = 1\n\n\n# of f\ndef f(): pass\n\n\ndef g(): pass\n",
        "def help(): pass\n\n\ndef g(): return 1\n",
        "A = 1\n\n\n# of f\ndef f(): pass\n\n\ndef help(): pass\n\n\ndef g(): return 1\n",
    ),
    "a helper that precedes nothing goes last": ("A = 1\n", "def f(): pass\n", "A = 1\n\n\ndef f(): pass\n"),
    "an empty file takes what it is given": ("", "import os\n\nX = 1\nY = 2\n", "import os\n\nX = 1\nY = 2\n"),
    "members go before what follows their class": (
        "class C:\n    x = 1\n",
        "class C:\n    def f(self): pass\n\n\ndef g(): pass\n",
        "class C:\n    x = 1\n\n    def f(self): pass\n\n\ndef g(): pass\n",
    ),
    "imports go before what uses them": (
        "import os\n",
        "import sys\n\nX = sys.path\n",
        "import os\nimport sys\n\n\nX = sys.path\n",
    ),
    "imports go after the docstring": ('"""Doc."""\n', "import os\n\nX = os\n", '"""Doc."""\n\nimport os\n\n\nX = os\n'),
    "imports go before the comment on what uses them": (
        "# of f\ndef f(): pass\n",
        "import os\n\nX = os\n\n\ndef f(): return X\n",
        "import os\n\nX = os\n\n\n# of f\ndef f(): return X\n",
    ),
    "a comment in another column belongs to nobody": (
        "class C:\n    x = 1\n# old\n    def f(self): pass\n",
        "class C:\n#   x = 4\n    y = 3\n\n    def f(self): return 2\n",
        "class C:\n    x = 1\n# old\n    y = 3\n\n    def f(self): return 2\n",
    ),
    "each class keeps its own": (
        "class A:\n    def f(self): return 1\n\nclass B:\n    def f(self): return 2\n",
        "class A:\n    def f(self): return 3\n\n\nclass B:\n    def f(self): return self._upstream_f()\n",
        "class A:\n    def f(self): return 3\n\nclass B:\n    def f(self): return self._upstream_f()\n\n"
        "    def _upstream_f(self): return 2\n",
    ),
    "imports go into the leading block, in upstream's order": (
        '"""Doc."""\nimport os\nfrom re import (\n    sub,\n)\n\nX = 1\nimport late\n',
        "import sys\nfrom re import match, sub\n\nX = 2\n",
        '"""Doc."""\nimport os\nimport sys\nfrom re import match, sub\n\nX = 2\nimport late\n',
    ),
    "each section of imports has its place": (
        "import os\nimport sys\n\nimport torch\n\nX = 1\n",
        "import abc\nfrom re import sub\nimport numpy\nfrom speechbrain.y import z\n\nX = 2\n",
        "import abc\nimport os\nimport sys\nfrom re import sub\n\nimport numpy\nimport torch\n\n"
        "from speechbrain.y import z\n\nX = 2\n",
    ),
    "a section that upstream lacks is made": (
        "import os\n\nimport speechbrain\n\nX = 1\n",
        "import torch\n\nX = 2\n",
        "import os\n\nimport torch\n\nimport speechbrain\n\nX = 2\n",
    ),
    "a line of imports that gets too long is broken": (
        f"from {'m' * 70} import a\n\nX = 1\n",
        f"from {'m' * 70} import B, C_C\n\nX = 2\n",
        f"from {'m' * 70} import (\n    C_C,\n    B,\n    a,\n)\n\nX = 2\n",
    ),
    "an import with a comment stays as it is": (
        "from re import (\n    sub,  # why\n)\n\nX = 1\n",
        "from re import match\n\nX = 2\n",
        "from re import (\n    sub,  # why\n)\nfrom re import match\n\nX = 2\n",
    ),
    "a function without a docstring keeps upstream's": (
        'def f(x):\n    """Doc.\n\n    More.\n    """\n\n    return 1\n',
        "def f(\n    x,\n):\n    # why\n    return 2\n",
        'def f(\n    x,\n):\n    """Doc.\n\n    More.\n    """\n\n    # why\n    return 2\n',
    ),
    "a function with a docstring does not": (
        'def f():\n    """Theirs."""\n    return 1\n',
        'def f():\n    """Mine."""\n    return 2\n',
        'def f():\n    """Mine."""\n    return 2\n',
    ),
    "a kept function leaves its docstring to the new one": (
        'class C:\n    # above\n    @d\n    def f(self):\n        """Doc."""\n        return 1  # one\n\n    y = 1\n',
        "class C:\n    @d\n    def f(self):\n        return self._upstream_f() + 1  # two\n",
        'class C:\n    # above\n    @d\n    def f(self):\n        """Doc."""\n        return self._upstream_f() + 1  # two\n\n'
        "    @d\n    def _upstream_f(self):\n        return 1\n\n    y = 1\n",
    ),
    "a kept function leaves the marks of upstream's checkpoint hooks to the new one": (
        "class C:\n    @d\n    @x.mark_as_saver\n    @e\n    def f(self):\n        'Doc.'\n        return 1\n",
        "class C:\n    @x.mark_as_saver\n    def f(self):\n        return self._upstream_f()\n",
        "class C:\n    @x.mark_as_saver\n    def f(self):\n        'Doc.'\n        return self._upstream_f()\n\n"
        "    @d\n    @e\n    def _upstream_f(self):\n        return 1\n",
    ),
    "new definitions are as far apart as in the delta": (
        "def f(): pass\n",
        "A = 1\nB = 2\n\n# of C\nC = 3\n\n\ndef f(): return A\n",
        "A = 1\nB = 2\n\n# of C\nC = 3\n\n\ndef f(): return A\n",
    ),
    "a package may be imported in parts": (
        "import torch\nX = 1\n",
        "import torch.nn\nX = 2\n",
        "import torch\nimport torch.nn\nX = 2\n",
    ),
    "an import from the own module is a promise": (
        "import os\nlogger = 1\ndef f(): pass\n",
        "from speechbrain.x import logger\n\n\ndef f(): return logger\n",
        "import os\nlogger = 1\ndef f(): return logger\n",
    ),
    "a class is merged": (
        "class C(B):\n    '''Theirs.'''\n\n    x = 1\n\n    def f(self):\n        pass\n\n    def g(self): pass\n\n\nY = 1\n",
        "class C:\n    '''Mine.'''\n\n    def h(self): pass\n\n    @p\n    def f(self):\n        return 1\n\n    z = 2\n",
        "class C(B):\n    '''Theirs.'''\n\n    x = 1\n\n    def h(self): pass\n\n    @p\n    def f(self):\n        return 1\n\n"
        "    def g(self): pass\n\n    z = 2\n\n\nY = 1\n",
    ),
    "a method keeps upstream's where it calls it": (
        "class C:\n    @d\n    def f(self, f): return f\n",
        "class C:\n    def f(self, f): return self._upstream_f(f) + 1\n",
        "class C:\n    def f(self, f): return self._upstream_f(f) + 1\n\n    @d\n    def _upstream_f(self, f): return f\n",
    ),
    "a function too, which the delta may import": (
        "def f(): pass\n",
        "from speechbrain.x import _upstream_f\n\n\ndef f(): _upstream_f()\n",
        "def f(): _upstream_f()\n\n\ndef _upstream_f(): pass\n",
    ),
    "a coroutine too": (
        "async  def f(): pass\n",
        "async def f(): await _upstream_f()\n",
        "async def f(): await _upstream_f()\n\n\nasync  def _upstream_f(): pass\n",
    ),
}


@pytest.mark.parametrize("upstream, delta, wanted", GRAFTS.values(), ids=GRAFTS)
def test_graft(upstream, delta, wanted):
    assert graft(upstream.encode(), delta.encode(), PATH).source.decode() == wanted


REFUSALS = {
    "if": ("X = 1\n", "if True:\n    X = 2\n", r"line 1 \(If\)"),
    "try": ("X = 1\n", "try:\n    X = 2\nfinally:\n    pass\n", r"\(Try\)"),
    "two targets": ("X = 1\n", "X = Y = 2\n", r"\(Assign\)"),
    "a tuple": ("X = 1\n", "X, Y = 1, 2\n", r"\(Assign\)"),
    "only an annotation": ("X = 1\n", "X: int\n", r"\(AnnAssign\)"),
    "__future__": ("X = 1\n", "from __future__ import annotations\nX = 2\n", "__future__"),
    "star import": ("X = 1\n", "from os import *\nX = 2\n", "star"),
    "twice in the delta": ("X = 1\n", "X = 2\nX = 3\n", "X is there twice"),
    "twice upstream": ("X = 1\nX = 2\n", "X = 3\n", "binds X 2 time"),
    "in a condition upstream": ("if a:\n    def f(): pass\n", "def f(): pass\n", "exactly one function"),
    "in a tuple upstream": ("X, Y = 1, 2\n", "X = 3\n", "exactly one assignment"),
    "another kind upstream": ("f = 1\n", "def f(): pass\n", "exactly one function"),
    "an import upstream": ("from a import f\n", "def f(): pass\n", "exactly one function"),
    "twice in a class": (
        "class C:\n    @p\n    def f(s): pass\n    @f.setter\n    def f(s): pass\n",
        "class C:\n    def f(s): pass\n",
        "C.f 2",
    ),
    "a class with bases": ("class C: x = 1\n", "class C(B):\n    x = 2\n", "write it bare"),
    "a class with decorators": ("class C:\n    x = 1\n", "@d\nclass C:\n    x = 2\n", "write it bare"),
    "another indentation": ("class C:\n  x = 1\n", "class C:\n    x = 2\n", "the same white space"),
    "pass in a merged class": ("class C:\n    x = 1\n", "class C:\n    pass\n", r"\(Pass\)"),
    "a shared line": ("X = 1; Y = 2\n", "X = 3\n", "line 1 shares its line"),
    "a shared line in the delta": ("X = 1\n", "X = 3; Y = 2\n", "line 1 shares its line"),
    "a conflicting import": ("from a import f\nX = 1\n", "from b import f\nX = 2\n", "upstream binds f differently"),
    "an import that upstream assigns": ("os = 1\nX = 1\n", "import os\nX = 2\n", "upstream binds os differently"),
    "a promise that upstream breaks": (
        "X = 1\n",
        "from speechbrain.x import logger\nX = 2\n",
        "but upstream does not have it there",
    ),
    "a kept function that does not exist": ("X = 1\n", "def f(): _upstream_g()\n", "does not replace a function g"),
    "two classes that keep the same": (
        "class A:\n    def f(self): pass\nclass B(A):\n    def f(self): pass\n",
        "class A:\n    def f(self): self._upstream_f()\nclass B:\n    def f(self): self._upstream_f()\n",
        "one may inherit from the other",
    ),
    "a kept name that is taken": ("def _upstream_f(): pass\ndef f(): pass\n", "def f(): _upstream_f()\n", "that name is taken"),
    "a definition under a kept name": ("X = 1\n", "def _upstream_f(): pass\n", "the name of a kept function"),
    "another order": ("def f(): pass\nT = 1\n", "T = 5\ndef f(a=T): pass\n", "keep upstream's order"),
    "a walrus": ("y = (X := 5)\n", "X = 2\n", "by Assign, and not by exactly one|cannot replace"),
    "a decorator away from its @": ("@(\n    d\n)\ndef f(): pass\n", "def f(): pass\n", "line of its @"),
    "a class on one line": ("class C: x = 1\n", "class C:\n    x = 2\n", "the same white space"),
    "a continued line": ("x = 1; \\\ny = 2\n", "def n(): pass\n\n\ny = 3\n", "lay it out differently|cannot be read"),
    "a coding line": ("# coding: latin-1\nX = 1\n", "X = 2\n", "its encoding is iso-8859-1"),
    "a byte order mark": ("\xef\xbb\xbfX = 1\n", "X = 2\n", "its encoding is utf-8-sig"),
    "a kept assignment": ("X = 1\n", "X = _upstream_X\n", "X is not a function"),
    "not Python": ("X = 1\n", "X = = 2\n", "cannot be read as Python"),
    "not UTF-8": ("# coding: latin-1\nX = '\xe9'\n", "X = 2\n", "cannot be read as Python in UTF-8"),
}


@pytest.mark.parametrize("upstream, delta, message", REFUSALS.values(), ids=REFUSALS)
def test_refuses(upstream, delta, message):
    with pytest.raises(Refusal, match=message):
        graft(upstream.encode("latin-1"), delta.encode(), PATH)


def test_reports_what_was_replaced_and_what_is_new():
    done = graft(b"class C:\n    x = 1\nY = 2\n", b"class C:\n    x = 3\n    z = 4\nclass D:\n    w = 5\n", PATH)
    assert done.replaced == {"C.x": fingerprint(b"x = 1")}
    assert done.added == ["C.z", "D"]


STATEMENTS = ("def {0}():\n    return {1}", "{0} = {1}", "class {0}:\n    x = {1}", "# note {1}", "@deco\ndef {0}(): pass", "")


@given(
    st.lists(st.tuples(st.sampled_from(STATEMENTS), st.integers()), max_size=9),
    st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=4, unique_by=lambda t: t[1]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_only_what_the_delta_names_changes(statements, picks, newline, ends):
    """Random modules: the result parses and has the expected definitions, and all other lines are unchanged."""
    blocks = [text.format(f"n{i}", number) for i, (text, number) in enumerate(statements)]
    upstream = "\n".join(blocks) + "\n" * ends
    functions = {f"n{i}" for i, (text, _) in enumerate(statements) if "def " in text}
    others = {f"n{i}" for i, (text, _) in enumerate(statements) if not text.startswith("#") and text} - functions
    names = [f"n{i}" if i < len(statements) and old else f"new{i}" for old, i in sorted(picks, key=lambda pick: pick[1])]
    names = [name for name in names if name not in others]
    delta = "\n\n\n".join(f"def {name}():\n    return 'mine'" for name in names) + "\n"
    done = graft(upstream.replace("\n", newline).encode(), delta.encode(), PATH)
    after = ast.parse(done.source)
    mine = {node.name for node in after.body if isinstance(node, ast.FunctionDef) and "mine" in ast.unparse(node)}
    assert mine == set(names)
    assert set(done.replaced) == functions & set(names) and set(done.added) == set(names) - functions
    kept = [line for i, block in enumerate(blocks) if f"n{i}" not in names for line in block.split("\n") if line]
    lines = iter(done.source.decode().replace("\r\n", "\n").split("\n"))
    assert all(line in lines for line in kept), "a line that the delta does not name is gone, or moved"
