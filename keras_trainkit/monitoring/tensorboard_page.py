"""What a TensorBoard page shows beside curves: its arrangement, the run's recipe, hyperparameters, histograms."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from keras_trainkit.monitoring.sinks import flat

PAGE = {
    "Learning": {
        "loss": ["step/loss", "epoch/loss"],
        "metrics": ["epoch/(?!loss$|learning_rate$|.*_per_second$|step_seconds_p.*$).*"],
        "learning rate": ["step/learning_rate.*", "step/estimated_rate"],
        "update to weight ratio": ["step/update_to_weight_ratio"],
    },
    "Gradients": {
        "norm": ["step/gradient_norm", "step/clipped_gradient_norm"],
        "share left by clipping": ["step/clip_ratio"],
        "noise scale, in samples": ["step/gradient_noise_scale"],
        "loss scale": ["step/loss_scale"],
        "skipped steps": ["step/skipped_steps"],
    },
    "Layers": {
        "gradient norm": ["layers/gradient_norm/.*"],
        "update to weight ratio": ["layers/update_to_weight_ratio/.*"],
        "weight norm": ["layers/weight_norm/.*"],
        "dead units": ["layers/dead_fraction/.*"],
        "activations: mean": ["layers/activation_mean/.*"],
        "activations: standard deviation": ["layers/activation_std/.*"],
        "activations: zeros": ["layers/zero_fraction/.*"],
    },
    "Speed": {
        "samples per second": ["step/samples_per_second"],
        "tokens per second": ["step/tokens_per_second"],
        "seconds of a step": ["step/step_seconds_p.*"],
        "waiting and computing, seconds": ["step/data_wait_seconds", "step/compute_seconds"],
        "memory, MiB": ["step/host_memory", "step/device_memory.*"],
        "model FLOPs utilisation": ["step/model_flops_utilisation"],
    },
}
"""The categories of the page, their charts, and the regular expressions of each chart's tags."""


def arrangement(left_out: Collection[str] = ()) -> Any:
    """The summary that arranges the page of custom scalars, without charts that would stay empty.

    Args:
        left_out: regular expressions of `PAGE`; a chart of which all are left out is not shown.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import layout_pb2, summary

    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(
                    title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags])
                )
                for name, tags in charts.items()
                if not set(tags) <= set(left_out)
            ],
        )
        for title, charts in PAGE.items()
    ]
    categories = [category for category in categories if category.chart]
    # Where TensorFlow is installed, this one is a message of TensorFlow's.
    return Summary.FromString(summary.pb(layout_pb2.Layout(category=categories)).SerializeToString())


def recipe_text(recipe: Mapping[str, Any]) -> Any:
    """The summary that shows the recipe as text."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    text = json.dumps(recipe, indent=2, default=str)
    return text_pb("recipe", f"```json\n{text}\n```")


def hyperparameters(recipe: Mapping[str, Any], name: str) -> Any:
    """The summary that makes a row of the table of hyperparameters.

    Which columns there are TensorBoard finds out from all runs that it shows: a list of them would hold for the first.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    return hparams_pb(flat(recipe), trial_id=name)


def histogram(tag: str, values: np.ndarray) -> Any:
    """The summary of one histogram of 30 buckets; what is not finite is left out."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram import metadata
    from tensorboard.util import tensor_util

    # TensorBoard's own function makes an array of 30 times the size.
    finite = np.asarray(values, "float64").ravel()
    counts, edges = np.histogram(finite[np.isfinite(finite)], bins=30)
    rows = np.stack([edges[:-1], edges[1:], counts], axis=1)
    about = metadata.create_summary_metadata(display_name=None, description=None)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor_util.make_tensor_proto(rows))])
