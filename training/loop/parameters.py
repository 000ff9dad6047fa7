"""What happens to the parameters between training and testing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import mxnet as mx
import numpy as np

from model.execution.fused_update import reorder


def average_statistics(net: Any, everywhere: Optional[Mapping[str, np.ndarray]] = None) -> None:
    """Give all devices the mean of their running statistics, so that they are one network again.

    Each device has seen other images. What is the same on all devices is left as it is.
    `everywhere`: the values on the devices of all workers, by structural name; None: there is one.
    """
    for name, parameter in net._collect_params_with_prefix().items():
        several = name in (everywhere or ()) or len(parameter.list_ctx()) > 1
        if parameter.grad_req == "null" and several:
            own = [data.asnumpy() for data in parameter.list_data()]
            values = (everywhere or {}).get(name, np.stack(own))
            if (values != values[0]).any():
                mean = values.mean(axis=0, dtype=np.float64).astype(values.dtype)
                parameter.set_data(mx.nd.array(mean, dtype=mean.dtype))


def plain_layout(net: Any) -> None:
    """Bring the parameters on CPUs back into MXNet's own layout; call it between test and training.

    A forward pass for inference turns weights of convolutions into oneDNN's layout in place, and
    the next training pass turns them back at some moment of its own. When an optimizer's update
    comes first, it works on a copy and rounds differently (NAG's kernel reads the weight once more
    after it has written it). Whether it does depends on the timing of threads, so that two runs
    would not be the same.
    """
    for parameter in net.collect_params().values():
        for data in parameter.list_data():
            if data.context.device_type == "cpu":
                reorder(data)
