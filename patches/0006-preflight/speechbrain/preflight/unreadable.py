"""Finds the place in a manifest, or in another text file, that made reading it fail."""

import csv
import io
import json
import re
import traceback
from pathlib import Path

READERS = "speechbrain.dataio"
UTF8 = "save the file as UTF-8, for example with: iconv -f {} -t UTF-8"


def unreadable(error):
    """Find out why a manifest cannot be read: what is wrong, where, and the remedy; None if the exception has another cause."""
    if isinstance(error, OSError):  # the manifest cannot be opened
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = None
    for frame in reversed(frames):
        if isinstance(error, UnicodeDecodeError):
            files = [value.name for value in frame.f_locals.values() if isinstance(value, io.TextIOWrapper)]
            found = found or next((_not_utf8(file) for file in files if isinstance(file, str)), None)
        if frame.f_globals.get("__name__", "").startswith(READERS) and not found:
            names, replacements = frame.f_locals, frame.f_locals.get("replacements") or {}
            if "csv_path" in names:
                found = _not_utf8(names["csv_path"]) or _in_csv(names["csv_path"], replacements)
            elif "json_path" in names:
                found = _not_utf8(names["json_path"]) or _in_json(names["json_path"], error, frames, replacements)
    return found


def _not_utf8(path):
    data = Path(path).read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        *before, last = data[: error.start].decode().split("\n")
        what = f"it is not UTF-8: byte {data[error.start]:#x} at position {error.start}"
        return what, f"{path}:{len(before) + 1}:{len(last) + 1}", UTF8.format(encoding)
    return None


def _in_csv(path, replacements):
    text = Path(path).read_text(encoding="utf-8")
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    head, ids = next(rows, []), {}
    if text.startswith("\ufeff"):
        what = "it begins with a byte-order mark, which becomes part of the first column's name"
        return what, f"{path}:1:1", "save the file as UTF-8 without a byte-order mark"
    if "ID" not in head:
        other = next((mark for mark in ";\t|" if len(head) == 1 and mark in head[0]), None)
        if other:
            return f"its columns are separated by {other!r}", f"{path}:1", "separate them by commas"
        what, remedy = f"it has no column ID, but {', '.join(head) or 'nothing'}", "add a header with ID, which names each item"
        return what, f"{path}:1", remedy
    for row in filter(None, rows):
        found = _in_row(head, row, ids, rows.line_num, replacements)
        if found:
            column, what, remedy = found
            return what, f"{path}:{rows.line_num}" + (f", column {column}" if column else ""), remedy
    return None if ids else ("it has a header, but no rows", f"{path}:1", "check how it was made")


def _in_row(head, row, ids, line, replacements):
    """The column, what is wrong and the remedy; None if the row can be read."""
    if len(row) != len(head):
        what = f"the row has {len(row)} values for {len(head)} columns"
        return [*head, head[-1]][min(len(row), len(head))], what, "add what is missing, and quote values with commas"
    cells = dict(zip(head, row))
    if cells["ID"] in ids:
        return "ID", f"the id {cells['ID']!r} is already in line {ids[cells['ID']]}", "give each item its own id"
    ids[cells["ID"]] = line
    for column, cell in cells.items():
        unknown = [name for name in re.findall(r"\$([\w.]+)", cell) if name not in replacements]
        if unknown:
            return column, f"${unknown[0]} has no replacement", f"pass replacements={{{unknown[0]!r}: ...}} to from_csv"
    try:
        float(cells.get("duration", 0))
    except ValueError:
        what = f"the duration is {cells['duration']!r}, not a number" if cells["duration"] else "the duration is empty"
        return "duration", f"{what} (item {cells['ID']!r})", "write the duration in seconds, or leave the item out"
    return None


def _in_json(path, error, frames, replacements):
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg}", f"{path}:{error.lineno}:{error.colno}", "fix it there, or just before"
    keys = [str(f.f_locals["key"]) for f in frames if f.f_code.co_name == "_recursive_format" and "key" in f.f_locals]
    if keys:
        what = f"{{{error.args[0]}}} has no replacement" if isinstance(error, KeyError) else f"{error}"
        remedy = "pass it in replacements=, and write {{ and }} for braces that are meant as text"
        return what, f"{path}: {' '.join(keys)}", remedy
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    if not data or not isinstance(data, dict):
        what = "it has no items" if not data else f"it is a {type(data).__name__}"
        return what, str(path), "write an object with an id and an object for each item"
    return None
