"""Threads that train clients side by side, each with a working model of its own.

One client's batches are small, and leave most of a machine idle. Two clients on one core each take less time than one
after the other on both. What a client makes does not hang on its neighbours: its draws are keyed, and what it keeps is
its own.
"""

import contextlib
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import torch

MOST = 8  # threads that "auto" takes: each holds Python's lock for a part of its time


def how_many(wanted, device, n_clients):
    """Return how many clients of a round of `n_clients` train at once. wanted: a number, or "auto"."""
    if wanted == "auto":
        wanted = min(MOST, torch.get_num_threads()) if device.type == "cpu" else 1
    return min(wanted, n_clients)


class ClientThreads:
    """Runs tasks, functions of a local_training.Trainer, `n` at a time. On a CPU they share torch's threads evenly."""

    def __init__(self, trainer, n):
        self.n, self.device = n, trainer.model.vector.device
        self.on_cpu = self.device.type == "cpu"
        self.idle = [trainer, *(trainer.twin() for _ in range(n - 1))]
        self.shared = {"device": self.device, "threads": 1}  # all that threads hold: they end when this object is gone
        self.pool = ThreadPoolExecutor(n, "client", _begin_thread, (self.shared,)) if n > 1 else None
        self.streams = trainer.model.vector.is_cuda and n > 1

    def _share(self):
        return max(1, torch.get_num_threads() // self.n)

    def run(self, tasks, ahead=None, pause=None):
        """Yield the results of `tasks`, an iterator, in their order; its next one is asked for when it can begin.

        ahead: how many may be at work or waiting to be yielded, n if not given; one more than n may have been handed
        over, so that no thread is idle. Once pause() is true no further task is, and the results end with those that
        were.
        """
        if self.pool is None:
            for task in tasks:
                yield task(self.idle[0])
                if pause is not None and pause():
                    return
            return
        begun, ended = deque(), False
        with self._fewer_threads():
            try:
                while True:
                    if begun and begun[0].done():
                        yield begun.popleft().result()
                        continue
                    at_work = [future for future in begun if not future.done()]
                    if len(at_work) <= self.n and len(begun) < max(self.n, ahead or 0) and not ended:
                        task = None if pause is not None and pause() else next(tasks, None)
                        if task is not None:
                            begun.append(self.pool.submit(self._do, task, self._now()))
                            continue
                        ended = True
                    if not begun:
                        return
                    wait(at_work, return_when=FIRST_COMPLETED)
            finally:
                for other in begun:  # after an error: none is left at work behind our back
                    other.cancel()
                for other in begun:
                    with contextlib.suppress(BaseException):
                        other.result()

    @contextlib.contextmanager
    def _fewer_threads(self):
        """Keep what this thread does meanwhile, and libraries that have one number for all, to a client's share."""
        if not self.on_cpu:
            yield
            return
        all_of_them, self.shared["threads"] = torch.get_num_threads(), self._share()
        torch.set_num_threads(self.shared["threads"])
        try:
            yield
        finally:
            torch.set_num_threads(all_of_them)

    def _now(self):
        """Return an event that holds a GPU stream back until all that was asked for so far is done, None on a CPU."""
        return torch.cuda.current_stream().record_event() if self.streams else None

    def _do(self, task, begin):
        """Return what the task makes of an idle Trainer; on a GPU, on a stream of its own, and when that is through."""
        trainer = self.idle.pop()
        try:
            if begin is None:
                return task(trainer)
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_event(begin)
                result = task(trainer)
                torch.cuda.current_stream().synchronize()
                return result
        finally:
            self.idle.append(trainer)


def _begin_thread(shared):
    """Set a new thread up."""
    if shared["device"].type == "cpu":
        torch.get_num_threads()  # torch sets a thread's number at the first question; after that it stays ours
        torch.set_num_threads(shared["threads"])
    if shared["device"].type == "cuda":
        torch.cuda.set_device(shared["device"])  # each thread has its own


def used_here(*tensors):
    """Keep a GPU from giving away the memory of other streams' tensors before this one is through with them."""
    for tensor in tensors:
        if torch.is_tensor(tensor) and tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream())
