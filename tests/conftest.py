"""Settings of the whole test session."""

from __future__ import annotations

import os

from hypothesis import settings

# Compilation makes some example slow, so no profile has a deadline.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
