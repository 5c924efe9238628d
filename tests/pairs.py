"""Two workers on the loopback address, in processes that end when their test does."""

import os
import subprocess
import sys
import time

from keras_trainkit.distribution.launching import local_clusters

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
LONGEST = 240


class Pair:
    """Two workers that run one program, without a launcher."""

    def __init__(self, folder, *command):
        self.clusters = local_clusters(2)
        variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | QUIET
        self.files = [(folder / f"output-{index}").open("w+") for index in (0, 1)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=variables | {"TF_CONFIG": cluster.tf_config()},
                cwd=folder,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for cluster, file in zip(self.clusters, self.files, strict=True)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process, file in zip(self.processes, self.files, strict=True):
            process.kill()
            process.wait()
            file.close()

    def output(self, index):
        self.files[index].seek(0)
        return self.files[index].read()

    def ended(self, index):
        return self.processes[index].wait(timeout=LONGEST), self.output(index)

    def wait_for(self, index, words):
        while words not in self.output(index):
            assert self.processes[index].poll() is None, self.output(index)[-3000:]
            time.sleep(0.1)
