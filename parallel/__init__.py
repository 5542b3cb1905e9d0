"""Ranks: communicator, devices, signs of life, preemption, and how a job starts and ends."""
