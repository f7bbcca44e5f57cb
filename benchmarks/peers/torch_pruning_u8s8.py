"""Torch-Pruning: half of the channels away, distilled from the teacher, then quantised by onnxruntime.

python torch_pruning_u8s8.py NETWORK MODEL.onnx CALIB.npz OUT.onnx TEACHER.pt TRAIN.npz SECONDS SEED

As published:

- Pruning as in the README's quickstart: `BasePruner`, L2 norm of groups, `pruning_ratio=0.5` of each layer's
  channels in one step, the classifier left alone. Its `round_to=8` is left out: it would keep 16 of 24 channels.
- Fine-tuning as in reproduce/main.py of VainF/Torch-Pruning: SGD with momentum 0.9, learning rate 0.01 divided by
  ten at 60 % and at 80 %, weight decay 5e-4, batches of 128. Per cents are of the time allowed, not of 100 epochs.
- Distillation with temperature 4 and nine tenths of the loss (Hinton et al. 2015, arXiv:1503.02531).

The augmentation is the teacher's. Each core trains on its share of every batch and gradients are averaged, which
gives more epochs than threads do.
"""

import copy
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ort
import samples
import torch
import torch_pruning
import train
from torch import distributed, multiprocessing
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

BATCH, RATE, MOMENTUM, DECAY = 128, 0.01, 0.9, 5e-4
MILESTONES = (0.6, 0.8)
TEMPERATURE, SOFT = 4.0, 0.9
RESERVED_SECONDS = 20.0
"""Of the time allowed, for starting, exporting and quantising."""


def read(path):
    """Return the training data as tensors."""
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))


def load_teacher(network, state, classes):
    """Return the network with its trained weights."""
    teacher = train.NETWORKS[network][0](classes)
    teacher.load_state_dict(torch.load(state, weights_only=True))
    return teacher.eval()


def pruned(teacher, sample):
    """Return a copy with half of the channels of every layer but the last."""
    student = copy.deepcopy(teacher)
    classifier = [module for module in student.modules() if isinstance(module, torch.nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        student,
        sample,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[classifier],
    )
    pruner.step()
    student.zero_grad(set_to_none=True)
    return student


def distillation(answers, taught, labels):
    """Return the loss against the teacher's softened answers and the labels."""
    soft, hard = (functional.log_softmax(logits / TEMPERATURE, 1) for logits in (answers, taught))
    distance = functional.kl_div(soft, hard, reduction="batchmean", log_target=True)
    return SOFT * TEMPERATURE**2 * distance + (1 - SOFT) * functional.cross_entropy(answers, labels)


def fit(rank, world, network, state, x, y, until, seed, folder):
    """Train on one core's share until a time of the monotonic clock; the first core writes the weights."""
    torch.set_num_threads(1)
    began = time.monotonic()
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    form = {"memory_format": torch.channels_last} if x.ndim == 4 else {}
    teacher = load_teacher(network, state, int(y.max()) + 1)
    student = pruned(teacher, x[:1])
    teacher, model = teacher.to(**form), DistributedDataParallel(student.to(**form).train())
    augment = train.NETWORKS[network][1]
    own, shared = torch.Generator().manual_seed(seed + rank), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    progress, epochs = torch.zeros(1), 0.0
    while progress < 1:
        order = torch.randperm(len(x), generator=shared)
        for at in range(0, len(x) - BATCH + 1, BATCH):
            progress.fill_((time.monotonic() - began) / (until - began))
            distributed.broadcast(progress, 0)  # both must stop, and slow down, at the same step
            if progress >= 1 and epochs > 0:
                break
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.1 ** sum(float(progress) >= milestone for milestone in MILESTONES)
            rows = order[at : at + BATCH][rank::world]
            given = augment(x[rows].clone(), own).contiguous(**form)
            with torch.no_grad():
                taught = teacher(given)
            loss = distillation(model(given), taught, y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            epochs += BATCH / len(x)
    if rank == 0:
        print(f"{epochs:.1f} epochs, last loss {loss.item():.3f}", file=sys.stderr)
        torch.save(student.state_dict(), Path(folder, "student.pt"))
    distributed.destroy_process_group()


def main():
    """Prune, distil, export, quantise."""
    network, _, calib, out, state, source, seconds, seed = sys.argv[1:9]
    until = time.monotonic() + float(seconds) - min(RESERVED_SECONDS, float(seconds) / 2)
    torch.manual_seed(int(seed))
    x, y = read(source)
    world = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        # Forked before anything is computed, so that the data is shared and nothing is imported twice.
        given = (world, network, state, x, y, until, int(seed), folder)
        multiprocessing.start_processes(fit, given, world, start_method="fork")
        student = pruned(load_teacher(network, state, int(y.max()) + 1), x[:1])
        student.load_state_dict(torch.load(Path(folder, "student.pt"), weights_only=True))
        exported = str(Path(folder, "pruned.onnx"))
        train.export(student.eval(), x[:2], exported)
        ort.quantize("u8s8", exported, samples.read(calib), out)
    print(f"{sum(p.numel() for p in student.parameters())} weights left", file=sys.stderr)


if __name__ == "__main__":
    main()
