"""The same work on many items in a few threads, without a queue of all of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(items: Iterable[T], work: Callable[[T], R], jobs: int) -> Iterator[tuple[T, R]]:
    """Items with what `work` made of them, in the order in which they end; at most `jobs` at a time.

    No item is begun after the caller stops. An exception of `work` is raised here, once those that are under way have
    ended; Ctrl-C waits for none of them.
    """
    source, lock, stop = iter(items), threading.Lock(), threading.Event()
    done: queue.Queue[tuple[T, R] | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(source)
                done.put((item, work(item)))
        except StopIteration:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            done.put(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    left, waits = jobs, True
    try:
        while left:
            result = done.get()
            if result is None:
                left -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    except (KeyboardInterrupt, GeneratorExit):
        waits = False
        raise
    finally:
        stop.set()
        for thread in threads if waits else ():
            thread.join()
