"""What happens to the parameters between training and testing."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


def average_statistics(net: Any) -> None:
    """Give all devices the mean of their running statistics, so that they are one network again.

    Each device has seen other images. What is the same on all devices is left as it is.
    """
    import mxnet as mx

    for parameter in net.collect_params().values():
        if parameter.grad_req == "null" and len(parameter.list_ctx()) > 1:
            values = np.stack([data.asnumpy() for data in parameter.list_data()])
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
    import mxnet as mx

    for parameter in net.collect_params().values():
        for data in parameter.list_data():
            if data.context.device_type == "cpu":
                # The one call that changes the layout of the array itself, and waits for it.
                pointer = ctypes.c_void_p()
                mx.base.check_call(
                    mx.base._LIB.MXNDArrayGetData(data.handle, ctypes.byref(pointer))
                )
