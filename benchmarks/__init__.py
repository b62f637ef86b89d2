"""Benchmarks: `python -m benchmarks`. What each figure means stands in `docs/performance.md`."""
