"""Runs a function in a process of its own: what a kernel with a fault breaks, or never leaves, is that process's alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def apart(seconds: float, function: Callable, *args: Any) -> Any:
    """Return function(*args), a module's own function and plain values; RuntimeError if it dies or takes too long.

    The processes are forked from a server that has imported torch and started no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tests.hostsim.backend"])
    answer, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, function, args))
    process.start()
    send.close()
    try:
        if not answer.poll(seconds):
            raise RuntimeError(f"{function.__name__}{args} took more than {seconds} s")
        return answer.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__}{args} died with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        answer.close()


def _answer(send, function: Callable, args: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    send.send(function(*args))
