"""What a user of MXNet writes, of nothing of this project: ``python compat_user_script.py FOLDER``.

`mxnet` is imported first, by any Python whose environment has the compatibility layer. A small
network is built and trained with NumPy's numbers as parameters, MXBoard logs it to FOLDER/logs, and
it is exported to FOLDER/net.onnx, which onnxruntime reads back.
"""

from __future__ import annotations

import mxnet as mx  # isort: skip # first, on purpose

import json
import sys
from pathlib import Path

import numpy as np
from mxboard import SummaryWriter


def build(channels: np.ndarray) -> mx.gluon.nn.HybridSequential:
    """Return a network all of whose sizes are NumPy's numbers."""
    net = mx.gluon.nn.HybridSequential(prefix="net_")
    with net.name_scope():
        for count in channels:  # np.int64 each
            net.add(
                mx.gluon.nn.Conv2D(count, kernel_size=(np.int64(3), np.int32(3)), padding=(1, 1))
            )
            net.add(mx.gluon.nn.BatchNorm(epsilon=np.float32(1e-5)))
            net.add(mx.gluon.nn.Activation("relu"))
        net.add(mx.gluon.nn.GlobalAvgPool2D(), mx.gluon.nn.Flatten())
        net.add(mx.gluon.nn.Dropout(np.float64(0.1)), mx.gluon.nn.Dense(np.prod([2, 1])))
    return net


def train(net: mx.gluon.nn.HybridSequential, writer: SummaryWriter, steps: int) -> list[float]:
    """Tell bright squares from dark ones; return the losses."""
    draw = np.random.RandomState(3)
    labels = draw.randint(0, 2, size=64)
    images = draw.normal(size=(64, 1, 8, 8)) * 0.3 + labels.reshape((-1, 1, 1, 1))
    x, y = mx.nd.array(images, dtype="float32"), mx.nd.array(labels)
    size = np.int64(16)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": np.float32(0.5)})
    loss_of, losses = mx.gluon.loss.SoftmaxCrossEntropyLoss(), []
    for step in range(steps):
        begin = (step * size) % np.int64(64)
        batch = mx.nd.slice_axis(x, axis=np.int64(0), begin=begin, end=begin + size)
        label = mx.nd.slice(y, begin=(begin,), end=(begin + size,))
        with mx.autograd.record():
            loss = loss_of(net(batch), label)
        loss.backward()
        trainer.step(size)
        losses.append(float(loss.mean().asscalar()))
        writer.add_scalar("loss", np.float32(losses[-1]), step)
        writer.add_histogram("weights", net[0].weight.data(), global_step=step, bins=np.int64(8))
    scores = mx.nd.softmax(net(x))[:, 1].asnumpy()
    writer.add_image("first", mx.nd.clip(x[0], a_min=np.float32(0), a_max=np.float64(1)))
    writer.add_pr_curve("curve", labels, scores, num_thresholds=11)
    writer.add_graph(net)
    return losses


def export(net: mx.gluon.nn.HybridSequential, folder: Path) -> float:
    """Export to ONNX; return how far onnxruntime's answers are from MXNet's."""
    import onnx
    import onnxruntime

    net.export(str(folder / "net"))
    files = [str(folder / "net-symbol.json"), str(folder / "net-0000.params")]
    path = str(folder / "net.onnx")
    mx.onnx.export_model(*files, [(4, 1, 8, 8)], [np.float32], path)
    model = onnx.load(path)
    # MXNet stamps the newest opset that onnx knows, but its operators are those of opset 13; an
    # onnxruntime older than onnx takes neither that nor the newest version of the file format.
    model.opset_import[0].version = 13
    model.ir_version = min(model.ir_version, 8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    x = np.random.RandomState(5).normal(size=(4, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return float(np.abs(found - net(mx.nd.array(x)).asnumpy()).max())


def main(folder: Path) -> None:
    """Do all of it, and print what was found as one line of JSON."""
    mx.random.seed(7)
    net = build(np.array([4, 8]))
    net.initialize(mx.init.Orthogonal())
    net.hybridize()
    with SummaryWriter(logdir=str(folder / "logs"), verbose=False) as writer:
        losses = train(net, writer, steps=24)
    found = {
        "first loss": losses[0],
        "last loss": losses[-1],
        "onnx error": export(net, folder),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
