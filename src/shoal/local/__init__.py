"""Node processes on this machine, for the demo, the benchmarks and the lab."""
