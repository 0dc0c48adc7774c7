"""Property tests draw the same examples in every run, so that a red build is a change's doing and not chance.

`HYPOTHESIS_PROFILE=explore pytest` draws new ones each time: for looking for what the fixed ones miss.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
