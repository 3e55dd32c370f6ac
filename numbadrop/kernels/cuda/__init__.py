"""The kernels on a GPU, under the names of the doors in `numbadrop.kernels`, which have checked.

Imported when the first array is sent to a GPU, through `numbadrop.kernels.device`.
"""

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.convolution import conv2d_at, gathered_conv2d, gathered_conv2d_t
from numbadrop.kernels.cuda.elementwise import rectifier_gradient, take_columns
from numbadrop.kernels.cuda.masks import dropout_mask
from numbadrop.kernels.cuda.matmul import (
    gathered_linear,
    gathered_matmul,
    gathered_matmul_t,
    matmul_at,
    scatter_matmul,
)
from numbadrop.kernels.cuda.normalization import (
    batch_moments,
    batch_norm,
    batch_norm_gradient,
    track_moments,
)
from numbadrop.kernels.cuda.pooling import (
    avg_pool2d,
    avg_pool2d_gradient,
    max_pool2d,
    max_pool2d_gradient,
)
from numbadrop.kernels.cuda.softmax import cross_entropy, cross_entropy_gradient
from numbadrop.kernels.cuda.update import update_blocks

__all__ = [
    "DeviceArray",
    "avg_pool2d",
    "avg_pool2d_gradient",
    "batch_moments",
    "batch_norm",
    "batch_norm_gradient",
    "conv2d_at",
    "cross_entropy",
    "cross_entropy_gradient",
    "dropout_mask",
    "gathered_conv2d",
    "gathered_conv2d_t",
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "matmul_at",
    "max_pool2d",
    "max_pool2d_gradient",
    "rectifier_gradient",
    "scatter_matmul",
    "take_columns",
    "track_moments",
    "update_blocks",
]
