"""Training in PyTorch by the settings of ``train_cifar.py``, for GPUs that MXNet cannot use.

Unlike the rest of `bridge` it knows `training`: recipes, schedules, draws of augmentation, records.
It needs PyTorch and NumPy, nothing else.
"""
