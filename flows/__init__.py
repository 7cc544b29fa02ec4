"""Orchestration: Prefect flows, the MLflow record, promotion and the command line."""

import os

from firstkd.proxies import bypass_for_this_machine

# Prefect, MLflow and DVC read these when they are imported or started, so they are set before any
# module of this package can import one. Values already set are kept.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default retries a dead server for minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # no blocks are used; saves 4 s per start
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(_name, _value)

bypass_for_this_machine()
