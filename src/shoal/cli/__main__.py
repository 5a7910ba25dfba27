"""`python -m shoal.cli` is `shoal`."""

from __future__ import annotations

from shoal.cli.main import main

main()
