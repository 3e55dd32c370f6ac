"""Train neural nets with batchwise dropout on submatrices of their weights."""

__version__ = "0.1.0"

__all__ = ["__version__"]
