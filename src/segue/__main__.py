"""`python -m segue` is the `segue` command."""

from __future__ import annotations

import sys

from segue.cli import main

sys.exit(main())
