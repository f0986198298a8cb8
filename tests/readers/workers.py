"""Work in processes that may crash, hang or eat memory: such a job fails alone, by its name, and the others go on."""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

_MOST_MEMORY = 3 << 30
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "REF_PATH": os.devnull, "REF_CACHE": os.devnull}

Job = dict[str, Any]  # arguments of the function
Result = dict[str, Any]  # what it returned, or {"failed": why}; and "stderr", what htslib and Python wrote there


def run_jobs(function: str, jobs: Iterable[Job], *, seconds: float, workers: int = 1) -> Iterator[tuple[Job, Result]]:
    """Call a function, named as ``module:function`` of this folder, once for each job; in no certain order."""
    todo: Queue[Job] = Queue()
    done: Queue[tuple[Job, Result]] = Queue()
    count = 0
    for job in jobs:
        todo.put(job)
        count += 1

    def work() -> None:
        with tempfile.TemporaryFile() as stderr:
            worker = _Worker(function, stderr)
            try:
                while True:
                    job = todo.get_nowait()
                    done.put((job, worker.call(job, seconds)))
            except Empty:
                pass
            except BaseException as error:
                done.put(({}, {"failed": f"the pool itself: {error!r}"}))
            finally:
                worker.stop()

    threads = [Thread(target=work, daemon=True) for _ in range(min(workers, count))]
    for thread in threads:
        thread.start()
    for _ in range(count):
        yield done.get()
    for thread in threads:
        thread.join()


class _Worker:
    def __init__(self, function: str, stderr: Any) -> None:
        self._function, self._stderr = function, stderr
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, job: Job, seconds: float) -> Result:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        self._stderr.seek(0)
        self._stderr.truncate()
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        answers: Queue[bytes] = Queue()
        stdout = process.stdout
        reader = Thread(target=lambda: answers.put(stdout.readline()), daemon=True)
        reader.start()
        try:
            answer = answers.get(timeout=seconds)
        except Empty:
            answer = b""
            process.kill()
            reason = f"it took more than {seconds} s"
        else:
            reason = ""
        if not answer:
            self._process = None
            status = process.wait()
            reader.join()
            reason = reason or (f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}")
            result: Result = {"failed": reason}
        else:
            result = json.loads(answer)
        self._stderr.seek(0)
        result["stderr"] = self._stderr.read().decode("utf-8", "replace")
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, __file__, self._function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **_ENVIRONMENT},
        )

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


def _serve(name: str) -> None:
    # What C code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, function = name.split(":")
    sys.path.insert(0, str(Path(__file__).parent))
    call = getattr(importlib.import_module(module), function)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        try:
            answer = call(**json.loads(line))
        except BaseException:
            answer = {"failed": traceback.format_exc(limit=-4)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
