"""DeepSpeed, as everything here imports it: told first what it would otherwise do."""

import logging

from firstkd.imports import unimportable

with unimportable("mlflow"):  # seconds, for an autotuner that nobody uses
    import deepspeed

deepspeed.utils.logger.setLevel(logging.WARNING)
# Shared memory between ranks on a CPU: gloo does as well, and building it hangs for ever on the
# lock file of an earlier process that was killed while it built.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

WHOLE_BELOW = 10_000
"""Elements below which ZeRO 3 leaves a weight whole: norms, which are not worth a message."""

__all__ = ["WHOLE_BELOW", "deepspeed"]
