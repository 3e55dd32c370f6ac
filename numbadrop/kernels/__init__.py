"""Kernels of a training step: products with submatrices of the weights, and what is around them.

Each runs in three tiers: a door that checks everything and allocates, a partition over threads,
and a serial kernel. `numbadrop.kernels.reference` defines what they compute in plain NumPy.
"""

from numbadrop.kernels import jitted as _jitted  # noqa: F401  (teaches Numba the doors)
from numbadrop.kernels.convolution import (
    conv2d_at,
    gathered_conv2d,
    gathered_conv2d_t,
    scatter_conv2d,
)
from numbadrop.kernels.device import to_device
from numbadrop.kernels.elementwise import rectifier_gradient, take_columns
from numbadrop.kernels.geometry import conv2d_size
from numbadrop.kernels.masks import dropout_mask
from numbadrop.kernels.matmul import (
    gathered_linear,
    gathered_matmul,
    gathered_matmul_t,
    matmul_at,
    scatter_matmul,
)
from numbadrop.kernels.normalization import (
    batch_moments,
    batch_norm,
    batch_norm_gradient,
    track_moments,
)
from numbadrop.kernels.pooling import (
    avg_pool2d,
    avg_pool2d_gradient,
    max_pool2d,
    max_pool2d_gradient,
)
from numbadrop.kernels.sampling import sample_units
from numbadrop.kernels.softmax import cross_entropy, cross_entropy_gradient
from numbadrop.kernels.threads import get_num_threads, set_num_threads
from numbadrop.kernels.update import (
    BlockUpdate,
    Update,
    element_rule,
    update_block,
    update_blocks,
)

__all__ = [
    "BlockUpdate",
    "Update",
    "avg_pool2d",
    "avg_pool2d_gradient",
    "batch_moments",
    "batch_norm",
    "batch_norm_gradient",
    "conv2d_at",
    "conv2d_size",
    "cross_entropy",
    "cross_entropy_gradient",
    "dropout_mask",
    "element_rule",
    "gathered_conv2d",
    "gathered_conv2d_t",
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "get_num_threads",
    "matmul_at",
    "max_pool2d",
    "max_pool2d_gradient",
    "rectifier_gradient",
    "sample_units",
    "scatter_conv2d",
    "scatter_matmul",
    "set_num_threads",
    "take_columns",
    "to_device",
    "track_moments",
    "update_block",
    "update_blocks",
]
