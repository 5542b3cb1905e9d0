"""Checks that take seconds and save a queue slot: `./run_train.sh --doctor`."""
