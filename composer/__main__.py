"""``python -m composer``: ``check``, ``diff`` and ``adopt``."""

import argparse
import os
import re
import sys

from composer import Refusal, base, record, tree
from composer.adopt import adopt


def check(versions, delta):
    """Hold the delta against each base, and the revision against the delta; print what each base gets.

    Arguments
    ---------
    versions : list of str
        The bases.
    delta : dict of str to bytes
        The delta.

    Raises
    ------
    Refusal
        If the delta does not fit a base, or the revision was not raised with it.
    """
    for version in versions:
        fork = record.load(version=version)
        tree.compose(fork, base.members(base.fetch(fork.base)), delta)
        print(f"{fork.version}: {len(fork.replaces)} definitions replaced, {len(fork.adds)} added; all as recorded.")
        print("".join(f"    {line}\n" for line in fork.patches.splitlines()), end="")
    found, recorded = record.digest(delta), record.table()
    if found != recorded["digest"]:
        raise Refusal(
            f"the delta or its record changed since revision {recorded['revision']}: in pyproject.toml set revision = "
            f'{recorded["revision"] + 1} and digest = "{found}", since pip takes an equal version for installed already.'
        )


def show_diff(fork, delta, patch=None, after=False):
    """Print the difference between the base and the fork, or that of one patch below a message to send it with.

    Arguments
    ---------
    fork : composer.record.Fork
        The record of the base.
    delta : dict of str to bytes
        The delta.
    patch : str
        The one patch.
    after : bool
        Whether the patches before it are in place already.
    """
    upstream = base.members(base.fetch(fork.base))
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    if patch:
        page = record.page(patch)
        if page not in fork.pages.values():
            raise Refusal(f"{page} does not apply to {fork.base.version}, as it says itself; name another with --base.")
        before = [other for other in set(fork.pages.values()) if after and other < page]
        print(message(record.read(page).decode()))
        package, _ = tree.patched(fork.only(*before, page), upstream, delta)
        upstream, _ = tree.patched(fork.only(*before), upstream, delta)
    else:
        package = tree.compose(fork, upstream, delta)
    sys.stdout.write(tree.diff(upstream, package))


def message(page):
    r"""Turn the page of a patch into a message to whom it is sent: its title, reason and story.

    Arguments
    ---------
    page : str
        The page: its title, a table of two columns, its sections.

    Returns
    -------
    str
        A subject and a body, without the section for the fork's own users.

    Example
    -------
    >>> print(message("# It dies\n\n| | |\n| --- | --- |\n| Reason | log(0) |\n\n## What happened\n\nIt died.\n"))
    Subject: [PATCH] It dies
    <BLANKLINE>
    log(0)
    <BLANKLINE>
    ## What happened
    <BLANKLINE>
    It died.
    ---
    <BLANKLINE>
    """
    title, _, rest = page.removeprefix("# ").partition("\n")
    reason = re.search(r"^\| Reason \| (.*) \|$", rest, re.M)
    story = re.split(r"^(?=## )", rest, flags=re.M)[1:]
    body = "".join(section for section in story if not section.startswith("## To have stock's behaviour back"))
    why = [reason[1]] if reason else []
    return "\n\n".join([f"Subject: [PATCH] {title}", *why, body.strip()]) + "\n---\n"


def main():
    """Run a command of the composer."""
    parser = argparse.ArgumentParser(
        prog="python -m composer",
        description="Compose the fork from the pinned upstream wheels and this repo's delta, and look at the result.",
        epilog=f"{base.LOCAL_WHEEL} names a wheel, or a folder of wheels, to take upstream's from instead of the package "
        f"index; {record.WANTED} names the base where --base does not.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    texts = {
        "check": "hold every definition against its recorded fingerprint on every base, and the revision against the digest",
        "diff": "print the unified diff from upstream's package to the fork's, or that of one patch, ready to be sent",
        "adopt": "pin another release of upstream in pyproject.toml, say what changed there, and which patches it still needs",
    }
    check_parser, diff_parser, adopt_parser = (
        commands.add_parser(name, help=text, description=text) for name, text in texts.items()
    )
    check_parser.add_argument("--base", default=os.environ.get(record.WANTED), help="this base alone")
    diff_parser.add_argument("--base", help="the base to compare with")
    diff_parser.add_argument("--patch", help="one patch (0001, PR_2537): a message, and a diff that `git apply` takes")
    diff_parser.add_argument("--after", action="store_true", help="where the patches before it are in place already")
    adopt_parser.add_argument("version", help="the release, as the package index names it")
    adopt_parser.add_argument(
        "--accept",
        metavar="PATCH",
        action="append",
        default=[],
        help="record it though upstream changed what it replaces",
    )
    arguments = parser.parse_args()
    delta = record.delta()
    if arguments.command == "check":
        check([arguments.base] if arguments.base else record.bases(), delta)
    elif arguments.command == "adopt":
        adopt(arguments.version, [record.page(patch) for patch in arguments.accept])
    else:
        show_diff(record.load(version=arguments.base), delta, arguments.patch, arguments.after)


if __name__ == "__main__":
    main()
