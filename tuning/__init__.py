"""Hyper-parameter search: a study of many runs of one program, each in a process and a folder of its own."""
