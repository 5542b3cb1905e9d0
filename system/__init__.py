"""Services of the operating system: atomic files, cgroups, CPU placement, memory, stderr."""
