"""Imported by the server from which loader processes are forked, and by nothing else.

A preemption signal often reaches every process of a job. The training process answers it, and needs its loaders until
it has saved: so they, and their server, pay no heed. They end with it: the server when its pipe closes, they with the
server. (For SIGTERM torch gives loader processes a handler of its own; `dataset` takes it away again.)
"""

import signal

import avpretrain.data.read.dataset  # noqa: F401  (what the loaders need, imported once for all)

for _number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(_number, signal.SIG_IGN)
