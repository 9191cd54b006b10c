"""``python -m composer``: ``check``, ``lock``, ``diff`` and ``adopt``."""

import argparse
import os
import re
import sys

from composer import Refusal, base, lock, record, tree
from composer.adopt import adopt


def check(versions):
    """Compare the deltas with the lock on each base, print what each base takes, and check that the revision is current.

    Arguments
    ---------
    versions : list of str
        The bases.

    Raises
    ------
    Refusal
        If the delta does not fit a base or the lock, or the lock is stale.
    """
    for version in versions:
        fork = record.load(version=version, patches="all")
        tree.compose(fork, base.members(base.fetch(fork.base)), record.lock())
        left_out = "".join(f", not {patch.number}" for patch in fork.not_applicable)
        print(f"{fork.base.version}: the definitions are as in the lock; {len(fork.patches)} patches{left_out}")
    if versions == record.bases() and lock.stale():
        raise Refusal(
            f"The lock is stale: a delta or the build changed after revision {record.lock()['revision']}. "
            f"To raise the revision, {record.RENEW}: otherwise pip keeps an installed package, since the version is the same."
        )
    print(f"Revision {record.lock()['revision']} is current." if versions == record.bases() else "Checked only these bases.")


def renew():
    """Renew the lock, and print what changed in it."""
    before = record.lock()["revision"]
    lines = lock.renew()
    revision = record.lock()["revision"]
    print("\n".join(lines) or "No definition is new, replaced or gone.")
    print(f"Revision {revision}" + (f", after {before}." if revision != before else ", as before: no package changed."))


def diff_of(fork, patch=None, after=False):
    """Write the difference between the base and the fork, or that of one patch, below a message for upstream.

    Arguments
    ---------
    fork : composer.record.Fork
        The build.
    patch : str
        The one patch; the diff is against the base with the patches that this one needs.
    after : bool
        Whether the diff is against the base with all patches before this one.

    Returns
    -------
    str
        The text.

    Raises
    ------
    Refusal
        If there is no such patch, or it does not apply to the base.
    """
    upstream = base.members(base.fetch(fork.base))
    if patch is None:
        return tree.diff(upstream, tree.compose(fork, upstream, record.lock()))
    one = record.find(patch, record.all_patches())
    if one not in fork.patches:
        raise Refusal(f"{one.name} does not apply to {fork.base.version}, but to {one.span}: choose another --base.")
    earlier = fork.patches[: fork.patches.index(one)]
    before = [other for other in earlier if after or other.number in one.needs]
    without, *_ = tree.patched(before, upstream)
    package, *_ = tree.patched([*before, one], upstream)
    return f"{message(one)}\n{tree.diff(without, package)}"


def message(patch):
    """Turn the page of a patch into a message for upstream: its title, reason and story.

    Arguments
    ---------
    patch : composer.record.Patch
        The patch.

    Returns
    -------
    str
        A subject and a body, without the section for the fork's own users.

    Example
    -------
    >>> print(message(record.find("0003", record.all_patches())).splitlines()[0])
    Subject: [PATCH] torchrun works on CPU, and reports unsynchronized parameters
    """
    story = re.split(r"^(?=## )", patch.text, flags=re.M)[1:]
    body = "".join(section for section in story if "stock's behavior back" not in section.partition("\n")[0])
    body = body.replace("## What this fork does", "## What this patch does")
    return "\n\n".join([f"Subject: [PATCH] {patch.title}", patch.row("Reason", ""), body.strip()]) + "\n---\n"


def main():
    """Run a command of the composer."""
    parser = argparse.ArgumentParser(
        prog="python -m composer",
        description="Compose the fork from the pinned upstream wheels and this repo's delta, and look at the result.",
        epilog=f"{base.LOCAL_WHEEL} names a wheel, or a folder of wheels, to use instead of the package index.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    texts = {
        "check": "compare every definition of the delta with the lock on every base, and say whether the lock is stale",
        "lock": "after a change: write composer/lock.toml, raise the revision, and say what is new, replaced or gone",
        "diff": "print the unified diff from upstream's package to the fork's, or that of one patch, ready to send",
        "adopt": "pin another release of upstream, show what changed there, and say which patches it still needs",
    }
    check_parser, _, diff_parser, adopt_parser = (
        commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".") for name, text in texts.items()
    )
    check_parser.add_argument("--base", help="only this base")
    diff_parser.add_argument("--base", help="the base to compare with; the newest by default")
    diff_parser.add_argument("--patch", help="one patch (0001, PR_2537): a message, and a diff that `git apply` takes")
    diff_parser.add_argument(
        "--after", action="store_true", help="with --patch: a diff against the base with all patches before it"
    )
    adopt_parser.add_argument("version", help="the release, as the package index names it")
    arguments = parser.parse_args()
    if arguments.command == "check":
        check([arguments.base] if arguments.base else record.bases())
    elif arguments.command == "lock":
        renew()
    elif arguments.command == "adopt":
        adopt(arguments.version)
    else:
        fork = record.load(version=arguments.base, patches="all" if arguments.patch else None)
        sys.stdout.buffer.write(diff_of(fork, arguments.patch, arguments.after).encode(errors="surrogateescape"))


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
