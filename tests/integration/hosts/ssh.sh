#!/usr/bin/env bash
# The launch agent: `ssh` by the name under which netns.py puts it on PATH (mpirun, mpiexec.hydra, horovodrun).
# WIDEFOV_TEST_SSH_OPTIONS: what a user has in ~/.ssh/config, as options.
read -r -a options <<<"${WIDEFOV_TEST_SSH_OPTIONS:-}" || true
remote=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/remote.py
exec "${WIDEFOV_TEST_PYTHON:-python3}" -ESs "$remote" ${options[@]+"${options[@]}"} "$@"
