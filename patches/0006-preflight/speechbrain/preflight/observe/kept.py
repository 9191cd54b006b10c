"""Finds what keeps the graph of each step alive, so that memory grows."""

import gc
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from types import FunctionType, ModuleType

import torch
from speechbrain.preflight.attempts import own_modules
from speechbrain.preflight.observe.calls import graph

SECONDS = 2.0  # how long to search
MANY = 1000  # a list that is longer does not hold graphs
MARK = "step"  # of a node, in its metadata


class Graphs:
    """The graphs of a few steps."""

    def __init__(self):
        self.marks, self.first, self.steps = [], 0, 0  # the first step that counts, and their number

    def mark(self, tensors, step):
        """Mark the graph of a step."""
        mark = {step}  # a set, because it can be referred to weakly
        for node in graph(tensors):
            if not hasattr(node, "variable"):  # a parameter, which is not freed
                node.metadata.setdefault(MARK, mark)
        self.marks.append(weakref.ref(mark))
        self.steps = step + 1

    def are_kept(self):
        """Return whether the graphs of all steps before the last one are alive."""
        earlier = {*range(self.first, self.steps - 1)}

        def kept():
            return earlier <= {step for mark in self.marks for step in mark() or ()}

        if kept():
            gc.collect()  # some are only in cycles
        return kept()


def holders(brain, first):
    """Find the names of what keeps the graph of one step, among attributes, globals and variables of closures."""
    own = {module.__name__: vars(module) for module in own_modules()}
    found, known, began = {}, set(), perf_counter()
    todo = [(f"{key} in {Path(each['__file__']).name}", value, False) for each in own.values() for key, value in each.items()]
    todo += [("", type(brain), False), ("self", brain, False), ("self.modules", brain.modules, False)]  # the last comes first
    while todo and perf_counter() - began < SECONDS:  # it may come to all objects of the process
        name, value, bounded = todo.pop()
        if id(value) in known or isinstance(value, (torch.optim.Optimizer, torch.utils.data.Dataset, ModuleType)):
            continue
        known.add(id(value))
        inner, of = {}, "{0}.{1}"
        if isinstance(value, torch.Tensor):
            if value.grad_fn is not None and any(first in node.metadata.get(MARK, ()) for node in graph([value])):
                found[name] = bounded and found.get(name, True)
        elif isinstance(value, (list, tuple, set, dict, deque)):
            bounded, of = bounded or getattr(value, "maxlen", None) is not None, "{0}"
            inner = (value if isinstance(value, dict) else dict(enumerate(value))) if len(value) <= MANY else {}
        elif isinstance(value, torch.nn.Module):
            inner = {**vars(value), **value._buffers, **value._modules, "_modules": None, "_buffers": None}
        elif isinstance(value, (FunctionType, type)) and value.__module__ not in own:
            pass
        elif isinstance(value, FunctionType):
            for key, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
                with suppress(ValueError):  # of a variable that has no value
                    todo.append((f"{key} in the closure of {value.__name__}", cell.cell_contents, bounded))
        elif isinstance(value, type):
            inner, name = {**vars(value), "bases": value.__bases__}, value.__name__
        elif not type(value).__module__.startswith("torch."):
            inner = {**getattr(value, "__dict__", {}), "": getattr(value, "__self__", None)}  # of a method
        todo += [(of.format(name, key), item, bounded) for key, item in inner.items()]
    return tuple(name for name, bounded in found.items() if not bounded) or ("",) * (not found)
