"""Several processes as one learner: each computes its share of a batch's gradient, and all make the same step.

The first process (rank 0) alone reads Kafka, writes checkpoints and announces them. It hands each batch to the others.
The shares' gradients are added in the order of the ranks on a processor, so a learner that computes all shares in one
process gives the same bits (`learner.updates`). On GPUs, torch adds them in an order of its own.

A process that dies ends all others: their next exchange fails. No checkpoint has been written by then, so the learner
starts again where the newest one stands.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from streams.devices import choose_device
from streams.errors import AGAIN, SearchloopError, SettingsError

SILENCE_SECONDS_MAX = 600.0  # An exchange that takes longer has failed. Rank 0 says something long before.
IDLE_SECONDS = 5.0
MEETING_SECONDS_MAX = 600.0
PAUSE_SECONDS = 0.1
ENDING_SECONDS_MAX = 2.0
BUCKET_ELEMENTS = 1 << 22
END = b"end"
INTERFACE = "GLOO_SOCKET_IFNAME"  # gloo's own variable: the network interface that it listens on.


class LearnerProcessError(SearchloopError, RuntimeError):
    """Another process of this learner is gone, or they do not fit together. No checkpoint was written."""


class LearnerProcessGoneError(LearnerProcessError):
    """Another process of this learner was killed, or does not answer: no fault of this one, which may start again."""

    exit_status = AGAIN


class Processes:
    """This process among those of one learner. Alone (`count` 1), it exchanges nothing."""

    def __init__(self, *, rank: int = 0, count: int = 1, watch: Callable[[], None] = lambda: None) -> None:
        """watch: called before each exchange; it raises LearnerProcessError if another process has ended."""
        self.rank = rank
        self.count = count
        self._watch = watch
        self._spoke = time.monotonic()

    def tell(self, message: bytes) -> None:
        """Send a message from rank 0 to all others, which call `hear`. Raises LearnerProcessError if one is gone."""
        if self.count > 1:
            self._broadcast(message)

    def hear(self, stop: Callable[[], bool]) -> bytes | None:
        """Return rank 0's next message; None if rank 0 or this process has been told to stop.

        Raises LearnerProcessError if rank 0 is gone.
        """
        while not stop():
            if message := self._broadcast(b""):
                return None if message == END else message
        return None

    def keep(self) -> None:
        """Tell the others that rank 0 lives, if it has said nothing for a while. Raises LearnerProcessError as `tell`.

        They wait for each message at most `SILENCE_SECONDS_MAX`, and rewards may come later than that.
        """
        if self.count > 1:
            self._watch()
            if time.monotonic() - self._spoke > IDLE_SECONDS:
                self._broadcast(b"")

    def gather(self, message: bytes) -> list[bytes]:
        """Return every process's message, by rank; each of them calls this with its own."""
        if self.count == 1:
            return [message]
        with self._exchange():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
            dist.all_gather(lengths, torch.tensor([len(message)]))
            longest = max(int(length) for length in lengths)
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(parts, _bytes(message.ljust(longest, b"\0")))
        return [bytes(part[: int(length)].numpy()) for part, length in zip(parts, lengths, strict=True)]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes."""
        if self.count == 1:
            return
        with self._exchange():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                if flat.device.type == "cpu":
                    _add_in_order(flat, self.count)
                else:
                    dist.all_reduce(flat)
                for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def end(self) -> None:
        """End the others in order, from rank 0, while they wait for a message."""
        if self.count > 1 and self.rank == 0:
            with suppress(LearnerProcessError):
                self._broadcast(END)

    def close(self) -> None:
        """Leave the others. If they have not been ended in order, their next exchange fails."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _broadcast(self, message: bytes) -> bytes:
        with self._exchange():
            self._spoke = time.monotonic()
            length = torch.tensor([len(message)])
            dist.broadcast(length, src=0)
            content = _bytes(message) if self.rank == 0 else torch.zeros(int(length), dtype=torch.uint8)
            if int(length):
                dist.broadcast(content, src=0)
        return bytes(content.numpy())

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self._watch()
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # This process's own trouble, though it is a RuntimeError, too.
        except RuntimeError as error:  # gloo and NCCL raise it if a connection closes or stays silent.
            # A connection closes a moment before its process has ended, and says less than the process's status.
            deadline = time.monotonic() + (ENDING_SECONDS_MAX if self.rank == 0 else 0.0)
            self._watch()
            while time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
                self._watch()
            reason = str(error).strip().splitlines()[0]
            raise LearnerProcessGoneError(
                f"learner process {self.rank} of {self.count}: expected an answer from all others, one is gone "
                f"({reason}). Nothing is lost; the learner goes on from its newest checkpoint when it starts again"
            ) from error


ALONE = Processes()


def join(
    meeting: str,
    *,
    rank: int,
    count: int,
    watch: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Processes:
    """Meet the other processes of this learner, and return this one among them.

    meeting: "file:///PATH", a new file on one machine, or "tcp://HOST:PORT" of rank 0's machine.
    watch: raises LearnerProcessError if a process has ended that should come. stop: ends the wait.
    Raises LearnerProcessError if the others do not come or compute on another kind of device, and SettingsError if the
    address is not one or the GPUs do not suffice.
    """
    _choose_gpu(meeting, rank=rank, count=count)
    silence = datetime.timedelta(seconds=SILENCE_SECONDS_MAX)
    try:
        store = _store(meeting, rank=rank, count=count)
        store.set(f"here-{rank}", choose_device())
        deadline = time.monotonic() + MEETING_SECONDS_MAX
        while not store.check([f"here-{other}" for other in range(count)]):
            watch()
            if stop() or time.monotonic() > deadline:
                raise LearnerProcessError(
                    f"learner process {rank}: expected {count} processes at {meeting}, not all came"
                )
            time.sleep(PAUSE_SECONDS)
        devices = {other: store.get(f"here-{other}").decode() for other in range(count)}
        if len(set(devices.values())) > 1:
            raise LearnerProcessError(
                f"learner process {rank} of {count}: expected all to compute on GPUs or all on processors, got "
                f"{', '.join(f'{other}: {device}' for other, device in devices.items())}. Make a GPU visible to each, "
                "or to none (CUDA_VISIBLE_DEVICES)"
            )
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=silence,
        )
    except RuntimeError as error:
        if isinstance(error, LearnerProcessError):
            raise
        raise LearnerProcessError(
            f"learner process {rank} of {count}: expected to meet the others at {meeting}, could not "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    return Processes(rank=rank, count=count, watch=watch)


def _choose_gpu(meeting: str, *, rank: int, count: int) -> None:
    """Take this process's GPU, if there are some. Raises SettingsError if two processes would have to share one."""
    if not torch.cuda.is_available():
        return
    visible = torch.cuda.device_count()
    if urlsplit(meeting).scheme == "file" and count > visible:  # All are on this machine; NCCL refuses to share.
        raise SettingsError(
            f"learner.processes: expected at most {visible} on this machine, a visible GPU each, got {count}. Start "
            "the run with fewer, or set CUDA_VISIBLE_DEVICES to more GPUs, or to none, and all compute on the processor"
        )
    torch.cuda.set_device(rank % visible)


def _store(meeting: str, *, rank: int, count: int) -> Any:  # torch does not export the type.
    """Return the place where the processes find each other's addresses."""
    address = urlsplit(meeting)
    if address.scheme == "file" and address.path:
        # The others are on this machine, so nothing need listen on its network.
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if loopback is not None:
            os.environ.setdefault(INTERFACE, loopback)
        return dist.FileStore(address.path, count)  # type: ignore[attr-defined]
    try:
        host, port = address.hostname, address.port
    except ValueError:
        host, port = None, None
    if address.scheme != "tcp" or not host or not port:
        raise SettingsError(
            f"learner.meeting: expected tcp://HOST:PORT of the first process's machine, got {meeting!r}"
        )
    timeout = datetime.timedelta(seconds=MEETING_SECONDS_MAX)
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, count, is_master=rank == 0, timeout=timeout, wait_for_workers=False
    )


def _add_in_order(flat: Tensor, count: int) -> None:
    parts = [torch.empty_like(flat) for _ in range(count)]
    dist.all_gather(parts, flat)
    flat.copy_(parts[0])
    for part in parts[1:]:
        flat += part


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in lists of at most `BUCKET_ELEMENTS` elements, or of one tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _bytes(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.zeros(0, dtype=torch.uint8)
