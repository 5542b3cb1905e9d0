"""Ranks: communicator, devices, heartbeat, preemption, and how a job starts and ends."""
