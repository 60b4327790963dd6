"""`python -m fastmlp` is the command `fastmlp`."""

import sys

from fastmlp.app.cli import main

sys.exit(main())
