"""What `./run_train.sh --doctor` looks at before a run costs a queue slot: one function per thing that goes wrong."""
