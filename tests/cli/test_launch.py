"""`keras-trainkit launch` with scripts of a few lines, in real processes, none of which loads TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from keras_trainkit.cli.errors import BadInput
from keras_trainkit.cli.launch import _environment, _own_names
from keras_trainkit.cli.main import make_parser
from keras_trainkit.distribution import launching

COMMAND = [sys.executable, "-m", "keras_trainkit", "launch"]
SCRIPT = """
import json, os, signal, sys, time
cluster = json.loads(os.environ["TF_CONFIG"])
index = cluster["task"]["index"]
def wait():
    time.sleep(100)
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the command on a script with the given end; whatever is left of it after the test is killed."""
    started = []

    def start(end, *options, arguments=(), environment=None):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + end)
        command = [*COMMAND, *options, str(script), *arguments]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables | (environment or {}),
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()  # its children die with it
        process.communicate()


def ended(process):
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def gone(pid):
    """Whether a process has ended, or ends within a generous while."""
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_each_worker_knows_all_and_its_lines_have_its_number(launch):
    end = "print(sys.argv[1:], 'tensorflow' in sys.modules)\nprint(json.dumps(cluster))\n"
    end += "print('to stderr', end='', file=sys.stderr)"
    code, out, error = ended(launch(end, "--workers", "2", arguments=("--epochs", "3", "-m", "--workers")))
    assert code == 0, error
    lines = [[line[4:] for line in out.splitlines() if line.startswith(f"[{index}] ")] for index in (0, 1)]
    assert lines[0][0] == lines[1][0] == "['--epochs', '3', '-m', '--workers'] False"
    clusters = [json.loads(line) for _, line in lines]
    assert clusters[0]["cluster"] == clusters[1]["cluster"] and len(set(clusters[0]["cluster"]["worker"])) == 2
    assert all(address.startswith("127.0.0.1:") for address in clusters[0]["cluster"]["worker"])
    assert [cluster["task"] for cluster in clusters] == [{"type": "worker", "index": index} for index in (0, 1)]
    assert sorted(error.splitlines()) == ["[0] to stderr", "[1] to stderr"]


def test_a_worker_that_fails_ends_all_with_its_error_and_code(launch):
    end = "print(os.getpid(), flush=True)\nif index == 1:\n    raise ValueError('no such column')\nwait()"
    code, out, error = ended(launch(end, "--workers", "3"))
    assert code == 1
    assert "worker 1 of 3 (127.0.0.1:" in error and "ended with exit code 1; its last lines:" in error
    assert error.rstrip().endswith("ValueError: no such column")
    assert all(gone(int(line[4:])) for line in out.splitlines())


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("if index == 0: sys.exit(7)\nwait()", 7, "worker 0 of 2"),
        ("if index == 1: os.kill(os.getpid(), signal.SIGKILL)\nwait()", 137, "was killed by SIGKILL"),
    ],
    ids=["exit code", "SIGKILL"],
)
def test_the_exit_code_is_that_of_the_worker(launch, end, code, words):
    got, _, error = ended(launch(end, "--workers", "2"))
    assert got == code and words in error


def test_of_two_that_failed_the_one_that_was_killed_is_the_cause():
    class Failed:
        def __init__(self, code):
            self.code = lambda: code

    running, follower, cause = Failed(None), Failed(1), Failed(-9)
    assert launching._failed([running, Failed(0)]) is None
    assert launching._failed([running, follower, cause]) is cause
    assert launching._failed([running, follower]) is follower


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on_once(launch, number, code):
    end = """
def note(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
wait()
"""
    process = launch(end, "--workers", "2")
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    got, out, error = ended(process)
    assert got == code
    assert sorted(out.splitlines()) == [f"[{index}] got {number.name}" for index in (0, 1)]
    assert f"ended by {number.name}" in error


def test_who_does_not_end_is_killed_after_the_grace(launch):
    end = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\nwait()"
    process = launch(end, "--workers", "2", "--grace", "0.3")
    pids = [int(process.stdout.readline()[4:]) for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with their parent")
def test_workers_do_not_outlive_a_killed_launcher(launch):
    process = launch("print(os.getpid(), flush=True)\nwait()", "--workers", "2")
    pids = [int(process.stdout.readline()[4:]) for _ in range(2)]
    process.kill()
    assert all(gone(pid) for pid in pids)


def test_restarts_use_new_processes_and_end_with_success(launch, tmp_path):
    end = """
if index == 1:
    with open("starts", "a") as file:
        file.write("x")
    if os.path.getsize("starts") < 3:
        os.kill(os.getpid(), signal.SIGKILL)
print("done")
"""
    code, out, error = ended(launch(end, "--workers", "2", "--restarts", "5"))
    assert code == 0 and "[1] done" in out
    assert (tmp_path / "starts").read_text() == "xxx"
    assert "restart 2 of 5" in error and "restart 3" not in error


def test_restarts_come_to_an_end(launch):
    code, _, error = ended(launch("sys.exit(5)", "--workers", "1", "--restarts", "2"))
    assert code == 5 and error.count("ended with exit code 5") == 3


def test_a_module_runs_with_m(launch, tmp_path):
    (tmp_path / "own.py").write_text("import sys; print(sys.argv[1:])")
    done = subprocess.run(
        [*COMMAND, "--workers", "1", "-m", "own", "-x"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[0] ['-x']\n"


def test_a_hosts_file_starts_the_workers_of_this_machine(launch, tmp_path):
    (tmp_path / "hosts").write_text("elsewhere:4000\n127.0.0.1 slots=2 port=4001  # here\nelsewhere:4001\n")
    code, out, error = ended(launch("print(cluster['cluster']['worker'])", "--hosts", "hosts"))
    assert code == 0, error
    listed = "['elsewhere:4000', '127.0.0.1:4001', '127.0.0.1:4002', 'elsewhere:4001']"
    assert sorted(out.splitlines()) == [f"[1] {listed}", f"[2] {listed}"]
    code, out, _ = ended(launch("print(index)", "--hosts", "hosts", "--host", "elsewhere"))
    assert sorted(out.split()) == ["0", "3", "[0]", "[3]"]
    code, _, error = ended(launch("print(index)", "--hosts", "hosts", "--host", "nowhere"))
    assert code == 2 and "does not list this machine (nowhere)" in error


def test_slurm_and_kubernetes_start_one_worker(launch):
    slurm = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
    code, out, _ = ended(launch("print(cluster['task']['index'])", "--cluster", "slurm", environment=slurm))
    assert (code, out) == (0, "[1] 1\n")
    pod = {"JOB_COMPLETION_INDEX": "2", "HOSTNAME": "fit-2"}
    named = {"KERAS_TRAINKIT_WORKERS": "3", "KERAS_TRAINKIT_SERVICE": "peers"}
    code, out, _ = ended(
        launch("print(cluster['cluster']['worker'][0])", "--cluster", "kubernetes", environment=pod | named)
    )
    assert (code, out) == (0, "[2] fit-0.peers:12345\n")
    code, _, error = ended(launch("", "--cluster", "kubernetes", environment={"JOB_COMPLETION_INDEX": "2"}))
    assert code == 2 and "`KERAS_TRAINKIT_WORKERS` must be a number" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one of the arguments --workers --hosts --cluster is required"),
        (("--workers", "0"), "`--workers` must be an integer at least 1. Received: --workers=0"),
        (("--workers", "2", "--timeout", "0"), "`--timeout` must be a number above 0"),
        (("--workers", "2", "--hosts", "x"), "not allowed with argument"),
        (("--hosts", "missing"), "No such file"),
        (("--cluster", "slurm", "--restarts", "1"), "--restarts needs --workers"),
        (("--workers", "2", "--host", "a"), "--host needs --hosts"),
        (("--workers", "two"), "invalid int value"),
    ],
)
def test_bad_input_is_one_line(launch, options, words):
    code, _, error = ended(launch("", *options))
    assert code == 2 and words in error and len(error.splitlines()) == 1


def test_a_missing_script_is_said_at_once():
    done = subprocess.run([*COMMAND, "--workers", "2", "nowhere.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "there is no script nowhere.py" in done.stderr


def test_the_timeout_and_the_gpus_reach_the_workers(monkeypatch):
    def given(*options):
        return make_parser().parse_args(["launch", "--workers", "2", *options, "script.py"])

    assert _environment(given("--timeout", "5"), 0) == {"KERAS_TRAINKIT_TIMEOUT": "5.0"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _environment(given("--gpus-per-worker", "2"), 1) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert _environment(given("--gpus-per-worker", "0"), 1) == {"CUDA_VISIBLE_DEVICES": "-1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert _environment(given("--gpus-per-worker", "1"), 1) == {"CUDA_VISIBLE_DEVICES": "5"}
    with pytest.raises(BadInput, match="too few GPUs for 2"):
        _environment(given("--gpus-per-worker", "2"), 1)


def test_this_machine_knows_its_names():
    assert {"localhost", "127.0.0.1"} <= _own_names()


def test_free_ports_differ():
    assert len({cluster.workers[cluster.index] for cluster in launching.local_clusters(8)}) == 8


def test_the_command_waits_for_no_tensorflow():
    code = "import sys; sys.argv[0] = '-m'\nfrom keras_trainkit.cli import main\nassert main.main({}) == 0\n"
    code += "assert not {{'tensorflow', 'keras'}} & set(sys.modules)"
    for arguments in (["list", "distribution"], ["launch", "--workers", "1", "-m", "this"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--workers N" in done.stdout
