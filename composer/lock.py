"""Writes the lock: what each patch replaces and adds on each base, so that a build notices a mistyped path or another base."""

import hashlib
import os

from composer import Refusal, base, metadata, record, tree

HEAD = "# Written by `python -m composer lock`: what each patch replaces (the fingerprint of upstream's definition) and adds.\n"


def renew(root=record.ROOT, pins=None):
    """Write the lock if it has changed, with the next revision if a package has changed; return what changed, as lines.

    Arguments
    ---------
    root : pathlib.Path
        The folder of pyproject.toml.
    pins : dict of str to str
        The bases with their hashes; by default those of the lock.

    Returns
    -------
    list of str
        One line for each definition that is new, replaced or gone.
    """
    old = record.lock(root)
    pins = pins or old["bases"]
    found, digest = look(pins, root)
    revision = old["revision"] + (digest != old["digest"])
    lines = [HEAD + f"revision = {revision}\ndigest = {_quoted(digest)}\n", "[bases]"]
    lines += [f"{_quoted(version)} = {_quoted(pins[version])}" for version in _versions(pins)]
    for patch, entries in found.items():
        lines += ["", f"[{patch}]"]
        for entry in sorted(entries):
            spans = (f"{_quoted(span)} = {_quoted(value)}" for span, value in _spans(entries[entry], _versions(pins)))
            lines.append(f"{_quoted(entry)} = {{ {', '.join(spans)} }}")
    text = "\n".join(lines) + "\n"
    path = root / record.LOCK
    if text.encode() != path.read_bytes():
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_bytes(text.encode())
            os.replace(part, path)
        except OSError as error:
            raise Refusal(f"{path} cannot be written ({error.strerror}): make it and its folder writable.") from None
    return changes(old, record.lock(root))


def stale(root=record.ROOT):
    """Whether the packages differ from those of the locked revision."""
    locked = record.lock(root)
    return look(locked["bases"], root)[1] != locked["digest"]


def look(pins, root):
    """Put all patches into all bases.

    Arguments
    ---------
    pins : dict of str to str
        The bases with their hashes.
    root : pathlib.Path
        The folder of pyproject.toml.

    Returns
    -------
    found : dict of str to dict
        By patch and definition, the fingerprint (or ``new``) on each base.
    digest : str
        16 hexadecimal digits, a hash of all packages and their metadata.
    """
    settings, patches = record.table(root), record.all_patches(root)
    for number, patch in enumerate(patches):
        for need in patch.needs:
            if need not in [other.number for other in patches[:number]]:
                raise Refusal(
                    f"{patch.name} needs {need}, but no patch before it has that number: correct its page, or drop both."
                )
    found, sha = {patch.name: {} for patch in patches}, hashlib.sha256()
    for version in _versions(pins):
        release = record.release(version, pins, settings)
        mine = tuple(patch for patch in patches if record.covers(patch.span, version))
        others = tuple(patch for patch in patches if patch not in mine)
        fork = record.Fork(settings["label"], 0, release, mine, (), others)
        upstream = base.members(base.fetch(release))
        package, entries, changed = tree.patched(mine, upstream)
        for patch, values in entries.items():
            for entry, value in values.items():
                found[patch].setdefault(entry, {})[version] = value
        files = {**tree.marked(fork, package, changed), **metadata.dist_info(fork, upstream)}
        for part in [version, release.sha256, *(part for item in sorted(files.items()) for part in item)]:
            part = part.encode() if isinstance(part, str) else part
            sha.update(b"%d:" % len(part) + part)
    return found, sha.hexdigest()[:16]


def changes(old, new):
    """List which definitions are new, replaced or gone in a lock, compared with an older one."""
    lines = []
    for patch in sorted((old.keys() | new.keys()) - {"revision", "digest", "bases"}):
        before, after = old.get(patch, {}), new.get(patch, {})
        for entry in sorted(before.keys() | after.keys()):
            if before.get(entry) != after.get(entry):
                kind = "gone" if entry not in after else "new" if tree.NEW in after[entry].values() else "replaced"
                lines.append(f"{kind:8}  {patch}  {entry}")
    return lines


def _spans(values, versions):
    """Group consecutive versions with the same value: pairs of a span and that value."""
    groups = []
    for version in versions:
        value = values.get(version)
        if groups and groups[-1][2] == value:
            groups[-1][1] = version
        else:
            groups.append([version, version, value])
    return [(first if first == last else f"{first} to {last}", value) for first, last, value in groups if value]


def _versions(pins):
    return sorted(pins, key=record.order)


def _quoted(text):
    if not text.isprintable() or '"' in text or "\\" in text:
        raise Refusal(f"{text!r} cannot be written into {record.LOCK}: choose another name for that file.")
    return f'"{text}"'
