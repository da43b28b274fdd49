"""Where another thread is."""

from __future__ import annotations

import subprocess
import sys
import threading

from celery_neli.threads import stack_of

#: Garbage whose collection needs the lock that Python 3.11 holds while it looks up the frames of threads. The
#: collection falls due at each point of that in turn.
_COLLECTED_MIDWAY = """
import gc, threading
from celery_neli.threads import stack_of

class Garbage:
    def __init__(self):
        self.itself, self.local = self, threading.local()
        self.local.value = 1

for after in range(1, 30):
    gc.disable()
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    gc.collect()
    for _ in range(5):
        Garbage()
    gc.set_threshold(gc.get_count()[0] + after, 1000, 1000)
    gc.enable()
    stack_of(threading.get_ident())
    assert gc.isenabled()
    end.set()
    for thread in threads:
        thread.join()
"""


def test_a_stack_names_the_function_in_which_its_thread_is() -> None:
    """Of a thread that has ended, it says so."""
    end = threading.Event()

    def waits_here() -> None:
        end.wait(60)

    thread = threading.Thread(target=waits_here)
    thread.start()
    assert thread.ident is not None
    assert "in waits_here" in stack_of(thread.ident)
    end.set()
    thread.join()
    assert stack_of(thread.ident) == "(its thread has ended)"


def test_a_garbage_collection_does_not_hang_the_process_that_looks_for_a_stack() -> None:
    """A beat that logs why it resigns must not freeze over that."""
    subprocess.run([sys.executable, "-c", _COLLECTED_MIDWAY], check=True, timeout=120)
