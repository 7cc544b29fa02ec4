"""DeepSpeed, imported here so that its unwanted defaults are always turned off first."""

import logging

from firstkd.imports import unimportable

with unimportable("mlflow"):  # takes seconds, for an autotuner that nobody uses
    import deepspeed

deepspeed.utils.logger.setLevel(logging.WARNING)
# Shared memory between ranks on a CPU: gloo does as well, and building it hangs forever on the
# lock file of an earlier process that was killed during the build.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

WHOLE_BELOW = 10_000
"""ZeRO 3 leaves weights with fewer elements whole: norms, which are not worth a message."""

__all__ = ["WHOLE_BELOW", "deepspeed"]
