"""The kernels on a GPU, under the names of the doors in `numbadrop.kernels`, which have checked.

Imported when the first array is sent to a GPU, through `numbadrop.kernels.device`.
"""
