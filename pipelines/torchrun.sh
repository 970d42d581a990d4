#!/bin/bash
# Label with torchrun: a process on each GPU of this machine (or as many as PROCESSES says) takes
# its share of the work units, and the one that ends last finishes the set:
#
#   pipelines/torchrun.sh --teacher MODEL --data 'docs/*.parquet' --key id --out labels/docs
#
# On several machines, run on each with TORCHRUN='--nnodes=2 --rdzv-backend=c10d
# --rdzv-endpoint=FIRST_MACHINE:29500'. Run it again after a failure: finished units are skipped.
set -euo pipefail

# Unquoted: it holds several options.
exec torchrun ${TORCHRUN:---standalone} --nproc-per-node="${PROCESSES:-auto}" \
    --no-python softlabels precompute "$@"
