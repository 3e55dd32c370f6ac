"""Training runs: fit and evaluate, checkpoints, metrics and curves."""

from numbadrop.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from numbadrop.train.curve import plot_curves
from numbadrop.train.fit import (
    CHECKPOINT_NAME,
    METRICS_NAME,
    DivergedError,
    Evaluation,
    TrainingInterrupted,
    evaluate,
    fit,
    train_step,
)
from numbadrop.train.metrics import EpochMetrics, error_rate, read_metrics, top_k_error

__all__ = [
    "CHECKPOINT_NAME",
    "METRICS_NAME",
    "Checkpoint",
    "CheckpointError",
    "DivergedError",
    "EpochMetrics",
    "Evaluation",
    "TrainingInterrupted",
    "error_rate",
    "evaluate",
    "fit",
    "load_checkpoint",
    "plot_curves",
    "read_metrics",
    "save_checkpoint",
    "top_k_error",
    "train_step",
]
