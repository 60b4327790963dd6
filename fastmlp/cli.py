"""Where scripts find the command: `fastmlp.cli.main`."""

import sys

from fastmlp.app.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
