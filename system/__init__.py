"""What the operating system gives: files that are whole or absent, cgroups, CPU placement, memory, stderr."""
