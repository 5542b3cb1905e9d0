"""Checks that take seconds and can save a wait in the queue: `./run_train.sh --doctor`."""
