#!/bin/sh
# Creates the work pool and the deployments of prefect.yaml in this folder, then runs a worker.
set -eu
prefect --no-prompt work-pool inspect firstkd >/dev/null 2>&1 ||
    prefect --no-prompt work-pool create firstkd --type process
prefect --no-prompt deploy --all
exec prefect --no-prompt worker start --pool firstkd
