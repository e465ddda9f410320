"""``python -m alexdeploy``, which the command ``alexdeploy`` runs, too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while that is loaded is a line as well."""
    try:
        from alexdeploy.cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
