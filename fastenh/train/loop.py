"""The training loop of every system: devices, precision, progress, logs, checkpoints, averaged weights.

A `Task` defines what is specific to a system, and `run` trains it. For several GPUs or machines, `torchrun` starts the
same program once per GPU.

No random state is saved. The samples of a step depend on their positions in training, and torch's generators are seeded
from (seed, step, rank) before each step. So a run that was stopped and resumed ends with the same bits as an
uninterrupted one, and each rank knows its samples without communication.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import socket
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional as differentiable
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import summary

from fastenh.atomic import make_folder, replacing
from fastenh.models.checkpoint import checksum
from fastenh.models.published import read_pth
from fastenh.train.config import CONFIG, Settings

CHECKPOINT = "checkpoint.pt"

Networks = Mapping[str, nn.Module]


class Task:
    """What is specific to the training of one system.

    Attributes:
        networks: all that are trained or have a state, by name; checkpoints contain them. They are created on the CPU;
            `run` moves them to the training device before it calls `optimisers`.
        frozen: networks that losses use; they are moved to the device, but neither trained nor saved.
        epoch: samples in an epoch, for settings that state epochs.
        clip: the norm to which the gradients of an update are clipped; 0 does not clip.
    """

    networks: dict[str, nn.Module]
    frozen: Sequence[nn.Module] = ()
    epoch: int = 0
    clip: float = 0.0

    def optimisers(self) -> dict[str, Optimizer]:
        """One for each name that `losses` yields."""
        raise NotImplementedError

    def schedules(self, optimisers: dict[str, Optimizer]) -> dict[str, LRScheduler]:
        """Learning-rate schedules by the names of their optimisers; each advances once per step."""
        return {}

    def batch(self, positions: range) -> Any:
        """The samples at these positions, which count through all steps of training: dicts, lists or tensors.

        Runs in a thread beside training, so it must use its own random generators, seeded from the positions.
        """
        raise NotImplementedError

    def losses(self, batch: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step: yields the name of an optimiser and the terms of its loss, once for each update.

        The update is done when the generator resumes after a yield: a GAN yields the discriminator's loss, then
        computes the generator's loss with the updated discriminator. Each term is a mean over the photos of the batch,
        or independent of them, so that the mean over ranks is the loss of the full batch.
        """
        raise NotImplementedError

    def pictures(self, networks: Networks) -> dict[str, Tensor]:
        """Images (3, H, W) in [0, 1] for TensorBoard, such as before/after pairs; `networks` are in eval mode."""
        return {}

    def finish(self, networks: Networks, folder: Path) -> None:
        """Writes the result; `networks` are in eval mode, and have averaged weights if settings ask for them."""
        raise NotImplementedError


def run(task: Task, settings: Settings, folder: Path, resume: bool = False) -> None:
    """Trains, and writes checkpoints, TensorBoard events and the task's result to `folder`.

    With `resume` training continues from the checkpoint in `folder`; without a checkpoint it starts from the beginning,
    with a warning.

    Raises:
        FileExistsError: if `folder` contains a run and `resume` is false.
        ValueError: for a checkpoint of other settings, or a file that is not a checkpoint.
        FloatingPointError: if a loss or a weight is not finite; the last checkpoint is then from before.

    Each message is one line.
    """
    if not resume and (folder / CHECKPOINT).exists():
        raise FileExistsError(f"{folder}: expected a new folder, got one with a run in it; resume continues that")
    requested = asdict(settings)
    settings = replace(settings, steps=settings.steps or math.ceil(settings.epochs * task.epoch / settings.batch))
    ranks = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=settings.device,
        devices=local_ranks,
        num_nodes=ranks // local_ranks,
        strategy="ddp" if ranks > 1 else "auto",
        precision="32-true" if settings.precision == "32" else f"{settings.precision}-mixed",  # type: ignore[arg-type]
    )
    fabric.launch()

    for network in task.networks.values():
        if ranks > 1:
            synchronise_batch_norm(network)
        fabric.to_device(network)
        network.train()
    for network in task.frozen:
        fabric.to_device(network)
    averages = {name: copy.deepcopy(network).eval() for name, network in task.networks.items() if settings.ema}
    optimisers = task.optimisers()
    schedules = task.schedules(optimisers)
    wrapped: dict[str, Any] = {name: fabric.setup_optimizers(optimiser) for name, optimiser in optimisers.items()}
    all_networks = nn.ModuleList(task.networks.values())
    state = State(task.networks, averages, optimisers, schedules, fabric)
    start = state.read(folder / CHECKPOINT, settings) if resume else 0
    if mean_over_ranks(fabric, torch.tensor(float(start), device=fabric.device)) != start:
        raise ValueError(f"{folder}: expected a folder that all machines share, got different checkpoints in it")

    writer = None
    if fabric.is_global_zero:
        make_folder(folder)
        with replacing(folder / CONFIG, overwrite=True) as part:
            part.write_text(json.dumps(requested, indent=1) + "\n")
        writer = Log(folder / "tensorboard", start)
    prepared = batches(task, settings, start, fabric.global_rank, ranks)
    with contextlib.closing(prepared), Meter(settings, start, writer) as meter:
        for step, batch in prepared:
            seeds = np.random.SeedSequence([settings.seed, step, fabric.global_rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(seeds[0]))
            terms: dict[str, Tensor] = {}
            updates = task.losses(fabric.to_device(batch))
            while True:
                with fabric.autocast():
                    update = next(updates, None)
                if update is None:
                    break
                name, loss = update
                terms |= {f"{name}/{term}": value.detach() for term, value in loss.items()}
                terms[name] = torch.stack([value.float() for value in loss.values()]).sum()
                optimisers[name].zero_grad()
                fabric.backward(terms[name])
                average_gradients(fabric, optimisers[name])
                if task.clip:  # not an error if not finite: the loss scaler of float16 skips such an update
                    fabric.clip_gradients(all_networks, wrapped[name], max_norm=task.clip, error_if_nonfinite=False)
                wrapped[name].step()
                terms[name] = terms[name].detach()
            for schedule in schedules.values():
                schedule.step()
            for name, average in averages.items():
                update_average(average, task.networks[name], settings.ema)

            # Waits for the device in each step, so that the error names the step whose loss is not finite.
            means = mean_over_ranks(fabric, torch.stack([value.float() for value in terms.values()])).tolist()
            done, values = step + 1, dict(zip(terms, means, strict=True))
            if not np.isfinite(means).all():
                got = ", ".join(f"{name} {value}" for name, value in values.items() if not np.isfinite(value))
                path = folder / CHECKPOINT
                saved = f"{path} is from before" if path.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"step {done}: expected a finite loss, got {got}; {saved}")
            rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in optimisers.items()}
            meter.update(done, values, rates)
            shown = averages or task.networks
            if writer and (done % settings.picture_every == 0 or done in (1, settings.steps)):
                with torch.no_grad(), eval_mode(shown):
                    for name, picture in task.pictures(shown).items():
                        picture = picture.float().clamp(0, 1).cpu()
                        writer.add(summary.image(name, picture, dataformats="CHW"), done)
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                state.write(folder / CHECKPOINT, done, settings)

    if writer:
        writer.close()
        with eval_mode(averages or task.networks):
            task.finish(averages or task.networks, folder)
    fabric.barrier()
    if ranks > 1:
        torch.distributed.destroy_process_group()


# ---- batches


def batches(
    task: Task, settings: Settings, start: int, rank: int, ranks: int
) -> Generator[tuple[int, Any], None, None]:
    """Each step from `start` on, and this rank's share of its batch, prepared in threads ahead of time."""
    share = settings.batch // ranks
    pending: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(settings.workers, "batches")
    try:
        submitted = start
        for step in range(start, settings.steps):
            while submitted < settings.steps and len(pending) <= settings.workers:
                first = submitted * settings.batch + rank * share
                pending.append(pool.submit(task.batch, range(first, first + share)))
                submitted += 1
            yield step, pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# ---- ranks


def average_gradients(fabric: Fabric, optimiser: Optimizer) -> None:
    """Averages gradients over ranks, in one message after the backward pass.

    DDP's hooks would need special care for a GAN's several passes, its gradient penalty, and parameters that a step
    does not use; and the networks here are small.
    """
    if fabric.world_size == 1:
        return
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    means = mean_over_ranks(fabric, torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_over_ranks(fabric: Fabric, tensor: Tensor) -> Tensor:
    mean = fabric.all_reduce(tensor, reduce_op="mean")
    assert isinstance(mean, Tensor)  # as its input is
    return mean


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the photos of all ranks, which have equally many; torch's own runs only on GPUs."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        ranks, axes = torch.distributed.get_world_size(), tuple(range(x.ndim - 1))
        with torch.autocast(x.device.type, enabled=False):
            floats = x.float().movedim(1, -1)  # channels last, so that per-channel vectors broadcast
            mean = differentiable.all_reduce(floats.mean(axes)) / ranks
            centred = floats - mean
            variance = differentiable.all_reduce(centred.square().mean(axes)) / ranks
            with torch.no_grad():
                count = ranks * x.numel() / x.shape[1]
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            normalised = centred * (self.weight * (variance + self.eps).rsqrt()) + self.bias
            return normalised.movedim(-1, 1).to(x.dtype)


def synchronise_batch_norm(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SynchronisedBatchNorm  # keeps the tensors and their names, replaces forward


# ---- averaged weights


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · network; buffers, such as batch norm's statistics, are copied."""
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)


@contextlib.contextmanager
def eval_mode(networks: Networks) -> Iterator[None]:
    """Puts networks into eval mode within a `with` block."""
    before = {name: network.training for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    yield
    for name, network in networks.items():
        network.train(before[name])


# ---- checkpoints


@dataclass
class State:
    """All that resuming a run needs: tensors and plain numbers, so that nothing else is unpickled."""

    networks: Networks
    averages: Networks
    optimisers: dict[str, Optimizer]
    schedules: dict[str, LRScheduler]
    fabric: Fabric

    def parts(self) -> dict[str, Mapping[str, Any]]:
        return {
            "networks": self.networks,
            "averages": self.averages,
            "optimisers": self.optimisers,
            "schedules": self.schedules,
        }

    def write(self, path: Path, step: int, settings: Settings) -> None:
        """Replaces the checkpoint atomically: even after a power cut `path` is the complete old or new one."""
        for name, network in self.networks.items():
            for key, tensor in network.state_dict().items():
                if not tensor.isfinite().all():
                    raise FloatingPointError(f"step {step}: expected finite weights, got NaN or ∞ in {name} {key}")
        if not self.fabric.is_global_zero:
            return
        content: dict[str, Any] = {
            kind: {name: item.state_dict() for name, item in items.items()} for kind, items in self.parts().items()
        }
        content |= {"step": step, "settings": asdict(settings)}
        content["precision"] = self.fabric.strategy.precision.state_dict()
        content["blake2b"] = checksum(content)
        buffer = io.BytesIO()
        torch.save(content, buffer)  # to memory: torch reports a full disk as an internal error
        with replacing(path, overwrite=True) as part:
            part.write_bytes(buffer.getbuffer())

    def read(self, path: Path, settings: Settings) -> int:
        """Restores the checkpoint at `path`, if there is one, and returns the number of steps done."""
        if not path.exists():
            if self.fabric.is_global_zero:
                problem = "no checkpoint to resume from, training starts from the beginning"
                warnings.warn(f"{path}: {problem}", stacklevel=2)
            return 0
        content = read_pth(path)
        before, now = content.get("settings"), asdict(settings)
        if not isinstance(before, dict):
            raise ValueError(f"{path}: expected a checkpoint, got a file without settings")
        expected = content.pop("blake2b", None)  # older checkpoints have none
        if expected is not None and (got := checksum(content)) != expected:
            raise ValueError(f"{path}: expected a checkpoint of BLAKE2b {expected!s:.40}, got a damaged one of {got}")
        for name in now:
            if name not in settings.FREE and before.get(name) != now[name]:
                raise ValueError(f"{name}: expected {before.get(name)!r}, as in the run to resume, got {now[name]!r}")
        if content["step"] > settings.steps:
            raise ValueError(f"steps: expected at least the {content['step']} already done, got {settings.steps}")
        try:
            for kind, items in self.parts().items():
                if content[kind].keys() != items.keys():
                    raise KeyError(f"{kind} {', '.join(content[kind])}")
                for name, item in items.items():
                    item.load_state_dict(content[kind][name])
            self.fabric.strategy.precision.load_state_dict(content["precision"])
        except (KeyError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise ValueError(f"{path}: expected a checkpoint of this training, got another's ({line:.160})") from None
        return content["step"]


# ---- progress and logs


class Log:
    """Writes a TensorBoard event file, each event at once.

    TensorBoard's own writer uses a thread, which prints a traceback without the file's name when the disk is full.
    """

    def __init__(self, folder: Path, start: int) -> None:
        make_folder(folder)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(self.path, "wb")  # noqa: SIM115
        self.records = RecordWriter(self.file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if start:  # tells TensorBoard to discard events after the checkpoint
            resumed = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start + 1, session_log=resumed))

    def add(self, values: Summary, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=values))

    def _write(self, event: Event) -> None:
        try:
            self.records.write(event.SerializeToString())
            self.file.flush()
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):  # flushing again after a failed write
            self.file.close()


class Meter:
    """Progress with loss, speed and time left, as a bar in a terminal and as lines elsewhere; scalars for TensorBoard.

    Ranks without a writer print nothing.
    """

    def __init__(self, settings: Settings, start: int, writer: Log | None) -> None:
        self.settings, self.start, self.writer = settings, start, writer
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]:.1f} photos/s"),
            TimeRemainingColumn(),
            console=console,
            disable=writer is None or not console.is_terminal,
        )

    def __enter__(self) -> Meter:
        self.line = self.bar.add_task("", total=self.settings.steps, completed=self.start, loss="–", rate=0.0)
        self.bar.start()
        self.started = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, done: int, values: dict[str, float], rates: dict[str, float]) -> None:
        if self.writer is None:
            return
        now, steps = time.monotonic(), self.settings.steps
        rate = (done - self.start) * self.settings.batch / (now - self.started)
        losses = ", ".join(f"{values[name]:.5f}" for name in rates)
        self.bar.update(self.line, completed=done, loss=losses, rate=rate)
        if done % self.settings.log_every and done != steps:
            return
        for name, value in values.items():
            self.writer.add(summary.scalar(f"loss/{name}", value), done)
        for name, learning_rate in rates.items():
            self.writer.add(summary.scalar(f"learning_rate/{name}", learning_rate), done)
        self.writer.add(summary.scalar("photos_per_second", rate), done)
        if self.bar.disable:
            left = (steps - done) * self.settings.batch / rate
            print(f"step {done}/{steps}: loss {losses}, {rate:.1f} photos/s, {left:.0f} s left", flush=True)
