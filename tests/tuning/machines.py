"""Stands for several machines: processes that run the same search, started at once, killed at will.

One process imports the kit; it forks as often as it is told to. Run as a program it is that process.
"""

import json
import os
import signal
import subprocess
import sys
import time


class Machines:
    """Starts processes of searches; `end` ends them all."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._running = []

    def start(self, folder, **kwargs):
        """Begins a search with these arguments; the number of its process."""
        os.makedirs(folder, exist_ok=True)
        self._parent.stdin.write(json.dumps({"folder": str(folder), **kwargs}) + "\n")
        self._parent.stdin.flush()
        process = int(self._parent.stdout.readline())
        self._running.append(process)
        return process

    def kill(self, process):
        os.kill(process, signal.SIGKILL)
        self.wait(process)

    def wait(self, *processes, seconds=300):
        deadline = time.monotonic() + seconds
        while any(is_there(process) for process in processes):
            assert time.monotonic() < deadline, "a search does not end"
            time.sleep(0.05)

    def end(self):
        for process in self._running:
            if is_there(process):
                os.kill(process, signal.SIGKILL)
        self._parent.stdin.close()
        self._parent.wait(30)


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def run(folder, name, base="TPESearch", seconds=0.05, elsewhere=False, wait=600, fate=None, **kwargs):
    """A search whose trials take some time; what it saw goes into `NAME.json`, and each run of a trial into `runs`."""
    import searching

    from keras_trainkit import tuning
    from keras_trainkit.tuning import database
    from keras_trainkit.tuning.running import workers

    if elsewhere:  # the others cannot see this process
        workers.place = lambda: name
    database.LONGEST_OUTAGE = wait

    def slow(values, epochs):
        time.sleep(seconds)
        return searching.curve(values, epochs)

    tuner = searching.search(folder, getattr(tuning, base), score=slow, run=False, **kwargs)
    tuner.oracle.verbose = 1
    original, fates = tuner.run_trial, [fate] if fate else []  # of its first trial

    def run_trial(trial, **kwargs):
        with open(os.path.join(folder, "runs"), "a") as file:
            file.write(f"{trial.trial_id} {name} {os.getpid()}\n")
        if fates:
            os.kill(os.getpid(), getattr(signal, fates.pop()))
        return original(trial, **kwargs)

    tuner.run_trial = run_trial
    tuner.search()
    best = tuner.oracle.get_best_trials()[0]
    seen = {"best": [best.trial_id, best.score], "trials": len(tuner.oracle.trials), "ended": tuner.oracle.end_order}
    with open(os.path.join(folder, f"{name}.json"), "w") as file:
        json.dump(seen, file)


def _serve():
    import searching  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            job = json.loads(line)
            log = os.open(os.path.join(job["folder"], f"{job['name']}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                run(**job)
                sys.stdout.flush()
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    _serve()
