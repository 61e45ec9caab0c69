"""Progress bars on the terminal."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """tqdm on the monotonic clock: when the system's clock is set, a bar neither freezes nor shows wrong times."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()
