"""The benchmarks that asv runs; see ../README.md."""
