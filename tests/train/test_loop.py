"""The loop, on tasks so small that what it must do can be written out beside it."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

pytest.importorskip("lightning", reason="the loop runs on Lightning Fabric: pip install fastenh[train]")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastenh.cli.options import message
from fastenh.models.checkpoint import checksum
from fastenh.train.config import Settings
from fastenh.train.loop import State, Task, run


class Line(Task):
    """y = 2x + noise, by a network with dropout, so that randomness in the network counts too."""

    def __init__(self, optimiser=Adam) -> None:
        torch.manual_seed(0)
        self.kind = optimiser
        self.networks = {"line": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))}
        self.finished: dict[str, Tensor] = {}
        self.seen: list[range] = []
        self.batches: list[Tensor] = []

    def optimisers(self):
        return {"line": self.kind(self.networks["line"].parameters(), 0.01)}

    def schedules(self, optimisers):
        return {"line": torch.optim.lr_scheduler.LambdaLR(optimisers["line"], lambda step: 0.9**step)}

    def batch(self, positions):
        self.seen.append(positions)
        return torch.tensor(np.array([np.random.default_rng(p).normal(size=4) for p in positions]), dtype=torch.float32)

    def losses(self, batch):
        self.batches.append(batch)
        yield "line", {"mse": (self.networks["line"](batch) - 2 * batch[:, :1]).square().mean()}

    def pictures(self, networks):
        assert not networks["line"].training
        return {"picture": torch.full((3, 4, 6), 0.5)}

    def finish(self, networks, folder):
        assert not networks["line"].training
        self.finished = {key: tensor.clone() for key, tensor in networks["line"].state_dict().items()}


def settings(**changes) -> Settings:
    return Settings(**({"steps": 12, "batch": 6, "device": "cpu", "checkpoint_every": 5} | changes))


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one and one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


class Stopped(Exception):
    pass


class StopsIn(Line):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def losses(self, batch):
        if len(self.batches) == self.step:
            raise Stopped
        yield from super().losses(batch)


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_a_resumed_run_ends_with_the_same_bits(ema, tmp_path):
    whole = Line()
    run(whole, settings(ema=ema), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(StopsIn(8), settings(ema=ema), tmp_path / "stopped")
    torch.rand(17)  # whatever was drawn in between
    resumed = Line()
    run(resumed, settings(ema=ema), tmp_path / "stopped", resume=True)
    assert resumed.seen[0] == range(30, 36)  # from the checkpoint of step 5 on
    assert_equal(whole.finished, resumed.finished)
    contents = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "stopped")]
    assert contents[0]["step"] == contents[1]["step"] == 12
    for one, other in zip(*(content["optimisers"]["line"]["state"].values() for content in contents), strict=True):
        assert_equal(one, other)


def test_a_finished_run_resumes_to_itself(tmp_path):
    whole, again = Line(), Line()
    run(whole, settings(), tmp_path)
    run(again, settings(), tmp_path, resume=True)
    assert not again.batches
    assert_equal(whole.finished, again.finished)


def test_it_does_what_a_plain_loop_does(tmp_path):
    task, plain = Line(SGD), Line(SGD)
    for network in (task.networks["line"], plain.networks["line"]):
        del network[2]  # the dropout, which draws from torch's generator
    run(task, settings(ema=0.75), tmp_path)

    network = plain.networks["line"]
    optimiser = plain.optimisers()["line"]
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(12):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 0.9**step
        optimiser.zero_grad()
        for _, terms in plain.losses(plain.batch(range(6 * step, 6 * step + 6))):
            terms["mse"].backward()
        optimiser.step()
        for name, p in network.named_parameters():
            average[name] = 0.75 * average[name] + 0.25 * p.detach()
    for name, p in network.named_parameters():
        torch.testing.assert_close(task.networks["line"].get_parameter(name), p)
        torch.testing.assert_close(task.finished[name], average[name])
    torch.testing.assert_close(task.finished["1.running_mean"], network[1].running_mean)


class Steep(Line):
    """Its loss goes through a network that is not trained."""

    clip = 0.01

    def __init__(self) -> None:
        super().__init__(SGD)
        self.frozen = [nn.Linear(1, 1)]

    def losses(self, batch):
        for name, terms in super().losses(batch):
            yield name, {"steep": 1000 * self.frozen[0](terms["mse"][None]).square().sum()}


def test_gradients_are_cut_and_frozen_networks_left_alone(tmp_path):
    task = Steep()
    before = [
        {key: tensor.clone() for key, tensor in network.state_dict().items()}
        for network in (task.networks["line"], task.frozen[0])
    ]
    run(task, settings(steps=1), tmp_path)
    moved = [task.networks["line"].get_parameter(n) - before[0][n] for n, _ in task.networks["line"].named_parameters()]
    length = torch.cat([step.flatten() for step in moved]).norm()
    assert length.item() == pytest.approx(0.01 * 0.01, rel=1e-3)  # rate times norm
    assert_equal(task.frozen[0].state_dict(), before[1])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["networks"].keys() == {"line"}


def test_batches_come_in_order_whoever_prepares_them(tmp_path):
    task = Line()
    run(task, settings(workers=3), tmp_path)
    for step, batch in enumerate(task.batches):
        assert torch.equal(batch, Line().batch(range(6 * step, 6 * step + 6)))
    assert len(task.batches) == 12


def test_epochs_become_steps(tmp_path):
    task = Line()
    task.epoch = 10
    run(task, settings(steps=0, epochs=3), tmp_path)
    assert len(task.batches) == 5  # 30 samples, 6 at a time


class Duel(Task):
    """Two numbers, each trained against the other, as in a GAN."""

    def __init__(self) -> None:
        self.networks = {"one": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1, bias=False)}
        for network in self.networks.values():
            nn.init.ones_(network.weight)
        self.seen: list[float] = []

    def optimisers(self):
        return {name: SGD(network.parameters(), 0.1) for name, network in self.networks.items()}

    def batch(self, positions):
        return torch.ones(len(positions), 1)

    def losses(self, batch):
        one, other = self.networks.values()
        yield "one", {"product": one(other(batch)).mean()}
        self.seen.append(one.weight.item())
        yield "other", {"product": one(other(batch)).mean(), "half": other.weight.sum() / 2}

    def finish(self, networks, folder):
        pass


def test_two_optimisers_take_turns_and_touch_only_their_own(tmp_path):
    task = Duel()
    run(task, settings(steps=2), tmp_path)
    one = other = 1.0
    seen = []
    for _ in range(2):
        one -= 0.1 * other
        seen.append(one)
        other -= 0.1 * (one + 0.5)
    assert task.seen == pytest.approx(seen)
    assert task.networks["one"].weight.item() == pytest.approx(one)
    assert task.networks["other"].weight.item() == pytest.approx(other)


class Breaks(Line):
    def __init__(self, value: float, step: int) -> None:
        super().__init__()
        self.value, self.step = value, step

    def losses(self, batch):
        for name, terms in super().losses(batch):
            broken = len(self.batches) == self.step
            yield name, {**terms, "extra": terms["mse"] * (self.value if broken else 1.0)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(value, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 8: expected a finite loss, got line/extra (nan|inf)") as error:
        run(Breaks(value, 8), settings(), tmp_path)
    assert "\n" not in str(error.value)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["step"] == 5
    assert all(tensor.isfinite().all() for tensor in content["networks"]["line"].values())
    resumed = Breaks(value, 0)
    run(resumed, settings(), tmp_path, resume=True)
    assert resumed.finished


class Explodes(Line):
    """The loss is finite, its gradient is not."""

    def losses(self, batch):
        for name, terms in super().losses(batch):
            weight = self.networks["line"][0].weight
            zero = (weight - weight.detach()).sum() if len(self.batches) == 10 else torch.ones(())
            yield name, {**terms, "root": zero.sqrt()}


def test_weights_that_are_no_numbers_do_not_become_a_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match="step 10: expected finite weights"):
        run(Explodes(), settings(), tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []

    def fsync(number, real=os.fsync):
        calls.append(os.fstat(number).st_ino)
        real(number)

    def replace(part, path, real=os.replace):
        real(part, path)
        if Path(path).name == "checkpoint.pt":
            calls.append("named")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    run(Line(), settings(steps=5), tmp_path)
    at = calls.index("named")
    assert calls[at - 1] == (tmp_path / "checkpoint.pt").stat().st_ino and calls[at + 1] == tmp_path.stat().st_ino


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """As on a full disk."""
    run(Line(), settings(steps=5), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    write = Path.write_bytes

    def full(path, data):
        if path.suffix == ".pt":
            write(path, b"half")
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        run(Line(), settings(), tmp_path, resume=True)
    assert message(error.value) == f"{tmp_path / 'checkpoint.pt'}: No space left on device"
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "config.json", "tensorboard"}


@pytest.mark.parametrize("picture_every", [1, 100])
def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(picture_every, tmp_path, monkeypatch, capfd):
    """Nothing else is written, such as a thread's traceback; scalars as well as pictures."""
    threads = set(threading.enumerate())
    monkeypatch.setattr("fastenh.train.loop.open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    with pytest.raises(OSError) as error:
        run(Line(), settings(log_every=1, picture_every=picture_every), tmp_path)
    line = message(error.value)
    assert line.startswith(f"{tmp_path}/tensorboard/events.out.tfevents.") and line.endswith(
        ": No space left on device"
    )
    assert capfd.readouterr().err == "" and not (tmp_path / "checkpoint.pt").exists()
    assert set(threading.enumerate()) <= threads


def test_resuming_without_a_checkpoint_begins_and_says_so(tmp_path):
    with pytest.raises(Stopped):
        run(StopsIn(2), settings(), tmp_path)
    task, whole = Line(), Line()
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt: no checkpoint to resume from, training starts from the beginning$"
    ):
        run(task, settings(), tmp_path, resume=True)
    run(whole, settings(), tmp_path / "whole")
    assert_equal(task.finished, whole.finished)


def test_a_changed_checkpoint_is_refused(tmp_path):
    run(Line(), settings(steps=5), tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    weight = content["networks"]["line"]["0.weight"].view(torch.int32)
    weight[0, 0] ^= 1  # the last bit of a number
    torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"expected a checkpoint of BLAKE2b [0-9a-f]{32}, got a damaged one of [0-9a-f]{32}$"
    ):
        run(Line(), settings(), tmp_path, resume=True)
    weight[0, 0] ^= 1
    torch.save(content, path)
    run(Line(), settings(steps=6), tmp_path, resume=True)


def test_a_checkpoint_from_before_there_were_checksums_loads(tmp_path):
    run(Line(), settings(steps=5), tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["blake2b"]
    torch.save(content, tmp_path / "checkpoint.pt")
    resumed = Line()
    run(resumed, settings(), tmp_path, resume=True)
    assert resumed.seen[0] == range(30, 36)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path):
    """What is not refused is what was saved: some bits lie where the file holds nothing."""
    run(Line(), settings(steps=1), tmp_path)
    path = tmp_path / "checkpoint.pt"
    data, before = path.read_bytes(), checksum(torch.load(path, weights_only=True))
    refused = 0
    for place in np.random.default_rng(0).integers(0, 8 * len(data), 60).tolist():
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            State({}, {}, {}, {}, None).read(path, settings(steps=1))
        except ValueError as error:
            assert "\n" not in str(error)
            if "another's" not in str(error):  # as a whole one is, since no network is given
                refused += 1
                continue
        assert checksum(torch.load(path, weights_only=True)) == before
    assert refused > 0


def test_a_folder_with_a_run_and_checkpoints_of_others_are_one_line(tmp_path):
    run(Line(), settings(), tmp_path)
    with pytest.raises(FileExistsError, match="expected a new folder, got one with a run in it"):
        run(Line(), settings(), tmp_path)
    with pytest.raises(ValueError, match="batch: expected 6, as in the run to resume, got 8"):
        run(Line(), settings(batch=8), tmp_path, resume=True)
    with pytest.raises(ValueError, match="steps: expected at least the 12 already done, got 11"):
        run(Line(), settings(steps=11), tmp_path, resume=True)
    with pytest.raises(ValueError, match="expected a checkpoint of this training, got another's"):
        run(Duel(), settings(), tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a PyTorch checkpoint") as error:
        run(Line(), settings(), tmp_path, resume=True)
    assert "\n" not in str(error.value)
    torch.save({"step": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"expected a checkpoint, got a file without settings$"):
        run(Line(), settings(), tmp_path, resume=True)


@pytest.mark.parametrize("wrap", [lambda tensor: tensor, lambda tensor: {"a": [tensor]}])
@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.zeros(1).expand(2**40)], ids=["sparse", "expanded"])
def test_tensors_that_claim_more_than_the_checkpoint_holds_are_one_line(tmp_path, tensor, wrap):
    run(Line(), settings(steps=1), tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(content | {"networks": wrap(tensor)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: expected (networks|0) ") as error:
        run(Line(), settings(), tmp_path, resume=True)
    assert "\n" not in str(error.value)


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    run(Line(), settings(log_every=4, picture_every=6), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/line")] == [4, 8, 12]
    rates = [event.value for event in events.Scalars("learning_rate/line")]
    assert rates == pytest.approx([0.01 * 0.9**step for step in (4, 8, 12)])
    assert {"loss/line/mse", "photos_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("picture")] == [1, 6, 12]
    assert (events.Images("picture")[0].height, events.Images("picture")[0].width) == (4, 6)
    assert json.loads((tmp_path / "config.json").read_text())["batch"] == 6


def test_tensorboard_loses_nothing_and_repeats_nothing_where_a_run_resumes(tmp_path):
    with pytest.raises(Stopped):
        run(StopsIn(8), settings(log_every=1), tmp_path)  # with a checkpoint of step 5
    run(Line(), settings(log_every=1), tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/line")] == list(range(1, 13))


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_progress_says_loss_rate_and_time_left(terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    run(Line(), settings(), tmp_path)
    out, err = capsys.readouterr()
    if terminal == "1":
        assert re.search(
            r"12/12\s+loss \d+\.\d{5} \d+\.\d photos/s 0:00:00", re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", err)
        )
    else:
        assert out.startswith("step 12/12: loss ") and "photos/s, 0 s left" in out and not err


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path):
    kinds = []

    class Watched(Line):
        def losses(self, batch):
            kinds.append(self.networks["line"](batch).dtype)
            yield from super().losses(batch)

    task = Watched()
    run(task, settings(precision="bf16"), tmp_path)
    assert set(kinds) == {torch.bfloat16}
    assert task.finished["0.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch", 0, "at least 1"),
        ("steps", -1, "a number, or 0"),
        ("precision", "8", "one of 32, bf16, 16"),
        ("ema", 1.0, "a decay from 0 to below 1"),
        ("learning_rate", math.nan, "a number above 0"),
        ("seed", -1, "a number from 0"),
        ("device", "tpu", "one of auto, cpu, cuda"),
    ],
)
def test_settings_that_cannot_be_are_one_line(key, value, words):
    with pytest.raises(ValueError, match=f"^{key}: expected {words}.*, got {value!r}$"):
        Settings(**{key: value})


# ---- several processes


class Image(Line):
    """A line again, seen as an image of 2×2 pixels, so that what is normalised has a height and a width."""

    def __init__(self) -> None:
        super().__init__(SGD)
        layers = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()]
        self.networks = {"line": nn.Sequential(*layers, nn.Linear(27, 1))}
        self.random: list[float] = []  # a number of torch's for each step

    def losses(self, batch):
        self.random.append(torch.rand(()).item())
        yield from super().losses(batch)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """The folder of a run by two processes, each with half of the batch. This file is the program that they run."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, __file__, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 12/12: ") == 1  # one rank speaks for both
    return folder


def test_two_processes_equal_one(two_processes, tmp_path):
    task = Image()
    start = {key: tensor.clone() for key, tensor in task.networks["line"].state_dict().items()}
    run(task, settings(), tmp_path)
    one, two = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["networks"]["line"]
        for folder in (tmp_path, two_processes)
    )
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    for key in ("1.weight", "2.weight", "2.running_var", "5.weight"):
        assert not torch.allclose(one[key], start[key], rtol=1e-3), key


def test_no_two_steps_and_no_two_ranks_draw_the_same_random_numbers(two_processes):
    drawn = [json.loads((two_processes / f"random_{rank}.json").read_text()) for rank in range(2)]
    assert [len(numbers) for numbers in drawn] == [12, 12]
    assert len({*drawn[0], *drawn[1]}) == 24


def test_a_batch_must_divide_among_the_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Settings(batch=16).batch == 16
    with pytest.raises(ValueError, match="batch: expected a multiple of the 4 processes that share it, got 6"):
        Settings(batch=6)


if __name__ == "__main__":
    task, folder = Image(), Path(sys.argv[1])
    run(task, settings(), folder)
    (folder / f"random_{os.environ['RANK']}.json").write_text(json.dumps(task.random))
