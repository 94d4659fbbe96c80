"""What conversations add to the heap, and Python's garbage collector, which stops the event loop to look at it."""

import gc
from functools import cache


@cache
def exempt_imports() -> None:
    """Take what this process has made before its first conversation out of the collector's sight, for good.

    A full collection looks at every object while nothing else of the process runs: 0.4 s of a core for the 630,000
    that torch, transformers, litellm and OpenHands make at import, and it comes again and again while hundreds of
    conversations grow. Of a conversation itself there are about 800.
    """
    gc.freeze()
