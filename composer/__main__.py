"""``python -m composer check`` and ``python -m composer diff``."""

import argparse
import sys

from composer import Refusal, base, record, tree


def check(fork, delta, package, upstream):
    """Print that the delta fits the base, or refuse if the revision was not raised with it."""
    for page in sorted(set(fork.pages.values())):
        if not (record.ROOT / page).is_file():
            raise Refusal(f"pyproject.toml names {page}, which does not exist: write the page of that patch.")
    found = record.digest(fork, delta)
    if found != fork.digest:
        raise Refusal(
            f"the delta changed since revision {fork.revision}: in pyproject.toml set revision = {fork.revision + 1} "
            f'and digest = "{found}", since pip takes an equal version for installed already.'
        )
    for entry in sorted(fork.pages):
        print(f"{fork.replaces.get(entry, 'new'):16}  {fork.pages[entry]}  {entry}")
    print(f"{fork.version}: {len(fork.replaces)} definitions replaced, {len(fork.adds)} added; all as recorded.")


def show_diff(fork, delta, package, upstream):
    """Print the difference between the base and the fork."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
    sys.stdout.write(tree.diff(upstream, package))


def main():
    """Run a command of the composer."""
    parser = argparse.ArgumentParser(
        prog="python -m composer",
        description="Compose the fork from the pinned upstream wheel and this repo's delta, and look at the result.",
        epilog=f"{base.LOCAL_WHEEL}=/path/x.whl takes the upstream wheel from a file instead of the package index.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("check", check, "hold every definition against its recorded fingerprint, and the revision against the digest"),
        ("diff", show_diff, "print the unified diff from upstream's package to the fork's"),
    ):
        commands.add_parser(name, help=text, description=text).set_defaults(run=run)
    arguments = parser.parse_args()
    fork, delta = record.load(), record.delta()
    upstream = base.members(base.fetch(fork.base))
    arguments.run(fork, delta, tree.compose(fork, upstream, delta), upstream)


if __name__ == "__main__":
    main()
