"""Who the workers are, read from files and from made-up environments."""

import json
import threading

import pytest

from keras_trainkit.distribution import Cluster
from keras_trainkit.distribution.hosts import read, split_address
from keras_trainkit.distribution.launching import free_ports
from keras_trainkit.distribution.meeting import meet
from keras_trainkit.distribution.slurm import expand_nodes, expand_sizes

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "1",
}
POD = {
    "JOB_COMPLETION_INDEX": "1",
    "HOSTNAME": "train-1",
    "KERAS_TRAINKIT_WORKERS": "2",
    "KERAS_TRAINKIT_SERVICE": "peers.team.svc.cluster.local",
}


def test_tf_config_is_what_tensorflow_reads():
    cluster = Cluster(["a:1", "b:2"], 1)
    assert json.loads(cluster.tf_config()) == {
        "cluster": {"worker": ["a:1", "b:2"]},
        "task": {"type": "worker", "index": 1},
    }
    assert Cluster.from_tf_config({"TF_CONFIG": cluster.tf_config()}) == cluster
    assert not cluster.is_chief and Cluster(["a:1", "b:2"], 0).is_chief


@pytest.mark.parametrize(
    ("workers", "index", "words"),
    [
        ([], 0, "`workers` must name at least one worker"),
        (["a"], 0, "`workers` must be addresses such as"),
        (["a:0"], 0, "`workers` must be addresses such as"),
        (["a:1", "a:1"], 0, "a:1 stands there twice"),
        (["a:1"], 1, "`index` must be an integer at least 0 and at most 0. Received: index=1"),
        (["a:1"], -1, "`index` must be an integer"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(workers, index, words):
    with pytest.raises(ValueError, match=words):
        Cluster(workers, index)


def test_a_chief_is_the_first_worker():
    tasks = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}

    def read_as(kind, index):
        config = {"cluster": tasks, "task": {"type": kind, "index": index}}
        return Cluster.from_tf_config({"TF_CONFIG": json.dumps(config)})

    assert read_as("chief", 0) == Cluster(["c:1", "a:1", "b:1"], 0)
    assert read_as("worker", 1) == Cluster(["c:1", "a:1", "b:1"], 2)
    with pytest.raises(ValueError, match=r"type chief or worker. Received: type='ps'"):
        read_as("ps", 0)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cluster": {"worker": ["a:1"]}}', "no json"])
def test_a_broken_tf_config_is_refused(text):
    with pytest.raises(ValueError, match="`TF_CONFIG` must be JSON such as"):
        Cluster.from_tf_config({"TF_CONFIG": text})


def test_a_hosts_file(tmp_path):
    file = tmp_path / "hosts.txt"
    file.write_text("# two machines\nnode1 slots=2\n\nnode2:7000  # alone\n[fe80::1]:80\nnode3 slots=2 port=90\n")
    expected = ["node1:12345", "node1:12346", "node2:7000", "[fe80::1]:80", "node3:90", "node3:91"]
    assert Cluster.from_hosts_file(file, 2) == Cluster(expected, 2)
    assert split_address("[fe80::1]:80") == ("fe80::1", 80)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("node1 node2", "line 2 must be `host:port` or"),
        ("node1:port", "line 2 must be `host:port` or"),
        ("node1 slots=0", "slots from 1 on"),
        ("node1 port=65535 slots=2", "ports from 1 to 65535"),
        ("node1 cpus=2", "`slots` and `port` once at most"),
        ("node1:80 port=81", "`slots` and `port` once at most"),
    ],
)
def test_a_line_that_says_something_else_is_named(tmp_path, line, words):
    (tmp_path / "hosts").write_text("good:1\n" + line)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "hosts")
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ValueError, match="lists no workers"):
        read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("login", "login"),
        ("n1,n2", "n1 n2"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[1,3-4,07],gpu1", "n1 n3 n4 n07 gpu1"),
        ("n[1-2]-ib,m[5]", "n1-ib n2-ib m5"),
        ("r[0-1]c[2-3]", "r0c2 r0c3 r1c2 r1c3"),
    ],
)
def test_slurm_node_lists(text, nodes):
    assert expand_nodes(text) == nodes.split()


@pytest.mark.parametrize("text", ["", "n[", "n[1-", "n[]", "n[3-1]", "n[a-b]", "n1,,n2", "n1,", "n]1[", "n[1-2]]"])
def test_a_broken_node_list_is_refused(text):
    with pytest.raises(ValueError, match="A Slurm node list must"):
        expand_nodes(text)


def test_slurm_tasks_per_node():
    assert expand_sizes("4") == [4]
    assert expand_sizes("2(x3),1,5(x1)") == [2, 2, 2, 1, 5]
    with pytest.raises(ValueError, match="tasks per node"):
        expand_sizes("2(x3")


def test_a_slurm_step_by_block_and_cyclic():
    assert Cluster.from_slurm(SLURM, port=100) == Cluster(["gpu01:100", "gpu01:101", "gpu02:100"], 1)
    cyclic = SLURM | {"SLURM_DISTRIBUTION": "cyclic:block", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    assert Cluster.from_slurm(cyclic, port=100) == Cluster(["gpu01:100", "gpu02:100", "gpu01:101"], 1)


def test_slurm_ports_are_the_same_for_all_tasks_and_differ_between_jobs():
    first = Cluster.from_slurm(SLURM)
    others = SLURM | {"SLURM_PROCID": "2", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}
    assert Cluster.from_slurm(others).workers == first.workers
    assert Cluster.from_slurm(SLURM | {"SLURM_JOB_ID": "4712"}).workers != first.workers
    assert Cluster.from_slurm(SLURM | {"SLURM_STEP_ID": "1"}).workers != first.workers
    reserved = Cluster.from_slurm(SLURM | {"SLURM_STEP_RESV_PORTS": "12000-12002"})
    assert reserved.workers == ["gpu01:12000", "gpu01:12001", "gpu02:12000"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_PROCID": None}, "`SLURM_PROCID` must be a number"),
        ({"SLURM_PROCID": "3"}, "`SLURM_PROCID` must be below 3"),
        ({"SLURM_STEP_NODELIST": None}, "`SLURM_STEP_NODELIST` must be set"),
        ({"SLURM_STEP_TASKS_PER_NODE": None}, "`SLURM_STEP_TASKS_PER_NODE` must be set"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, "names 2 nodes .* and the tasks of 1"),
        ({"SLURM_NODEID": "1"}, "`SLURM_NODEID` contradicts `SLURM_PROCID`=1"),
        ({"SLURM_LOCALID": "0"}, "`SLURM_LOCALID` contradicts"),
        ({"SLURM_STEP_RESV_PORTS": "none"}, "`SLURM_STEP_RESV_PORTS` must begin with a port"),
    ],
)
def test_slurm_variables_that_do_not_fit_are_named(change, words):
    environment = {name: value for name, value in (SLURM | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        Cluster.from_slurm(environment)


def test_an_indexed_job_of_kubernetes():
    peers = "peers.team.svc.cluster.local"
    assert Cluster.from_kubernetes(POD) == Cluster([f"train-0.{peers}:12345", f"train-1.{peers}:12345"], 1)
    named = POD | {"HOSTNAME": "other", "KERAS_TRAINKIT_JOB": "fit", "KERAS_TRAINKIT_PORT": "90"}
    assert Cluster.from_kubernetes(named).workers[0] == f"fit-0.{peers}:90"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"JOB_COMPLETION_INDEX": None}, "`JOB_COMPLETION_INDEX` must be a number"),
        ({"KERAS_TRAINKIT_WORKERS": "many"}, "`KERAS_TRAINKIT_WORKERS` must be a number"),
        ({"KERAS_TRAINKIT_WORKERS": "1"}, "`KERAS_TRAINKIT_WORKERS` must be above the pod's index, 1"),
        ({"KERAS_TRAINKIT_SERVICE": None}, "`KERAS_TRAINKIT_SERVICE` must name"),
        ({"HOSTNAME": None}, "`KERAS_TRAINKIT_JOB` must be the name"),
        ({"KERAS_TRAINKIT_PORT": "x"}, "`KERAS_TRAINKIT_PORT` must be a number"),
    ],
)
def test_kubernetes_variables_that_do_not_fit_are_named(change, words):
    environment = {name: value for name, value in (POD | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        Cluster.from_kubernetes(environment)


def test_the_environment_is_read_in_one_order():
    own = Cluster(["a:1", "b:1"], 1)
    everything = SLURM | POD | {"TF_CONFIG": own.tf_config()}
    assert Cluster.from_environment(everything) == own
    assert Cluster.from_environment(SLURM | POD).workers[0].startswith("gpu01:")
    assert Cluster.from_environment(POD).index == 1
    assert Cluster.from_environment({"PATH": "/bin"}) is None
    # An interactive job of one task, and a Job that is none of ours.
    assert Cluster.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None
    assert Cluster.from_environment({"JOB_COMPLETION_INDEX": "0", "HOSTNAME": "a-0"}) is None


# ------------------------------------------------------------------------------------------------------------- meeting


def met(clusters, timeout=30.0):
    """Every worker meets in a thread of its own: what each found, or the error it got."""
    results = [None] * len(clusters)

    def one(place):
        try:
            results[place] = meet(clusters[place], {"version": f"of {clusters[place].index}"}, timeout)
        except (RuntimeError, TimeoutError) as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=(place,), daemon=True) for place in range(len(clusters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def addresses(count):
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def test_workers_meet_and_know_what_each_says():
    listed = addresses(3)
    said = [{"version": f"of {index}"} for index in range(3)]
    assert met([Cluster(listed, index) for index in range(3)]) == [said] * 3


def test_who_does_not_come_is_named():
    listed = addresses(3)
    errors = met([Cluster(listed, 0), Cluster(listed, 2)], timeout=0.5)
    assert all(isinstance(error, TimeoutError) for error in errors)
    assert str(errors[0]) == str(errors[1]) == f"worker 1 ({listed[1]}) did not come within 0.5 s."


def test_another_list_of_workers_is_an_error():
    listed = addresses(2)
    errors = met([Cluster(listed, 0), Cluster([*listed, "127.0.0.1:9"], 1)], timeout=5)
    assert any("has another list of workers" in str(error) for error in errors)


def test_a_port_that_is_taken_is_said():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listed = [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:9"]
        with pytest.raises(RuntimeError, match="worker 0 cannot listen at its own address"):
            meet(Cluster(listed, 0), {}, 1.0)
