#!/bin/bash
# The whole loop as a chain of jobs, each after the one before it; returns at once. Run on the login node.
#   start:  scripts/slurm/speed.sh [--config FILE] [--root DIR] [--cluster FILE] [--until STAGE]
#   follow: the same words after `speedlit run --executor slurm`; a rerun of either submits only what is missing
set -euo pipefail
case " $* " in *" --config"*) ;; *) set -- --config speed "$@" ;; esac
exec ${SPEEDLIT:-speedlit} run --executor slurm --detach "$@"
