"""How workers meet before TensorFlow starts: who is missing is named, and so is whoever has another list."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_trainkit import distribution
from keras_trainkit.distribution.cluster import Cluster
from keras_trainkit.distribution.hosts import split_address
from keras_trainkit.distribution.launching import local_clusters
from keras_trainkit.distribution.meeting import meet


def outcomes(clusters, timeout):
    """What each of these workers, all in threads of this process, gets from the meeting, an error included."""

    def come(cluster):
        try:
            return meet(cluster, {"name": f"worker {cluster.index}"}, timeout)
        except (TimeoutError, RuntimeError) as error:
            return error

    with ThreadPoolExecutor(len(clusters)) as threads:
        return list(threads.map(come, clusters))


def test_each_hears_from_all_in_their_order():
    expected = [{"name": f"worker {index}"} for index in range(3)]
    assert outcomes(local_clusters(3), timeout=60) == [expected] * 3


def test_who_never_comes_is_named_on_all_others_and_nobody_else_is():
    clusters = local_clusters(3)
    for error in outcomes(clusters[:2], timeout=2):
        assert isinstance(error, TimeoutError)
        assert str(error) == f"worker 2 ({clusters[2].workers[2]}) did not come within 2 s."


@pytest.mark.tensorflow
def test_a_program_is_told_by_the_timeout_that_it_set():
    cluster = local_clusters(2)[0]
    with pytest.raises(TimeoutError, match=rf"^worker 1 \({cluster.workers[1]}\) did not come within 0\.5 s"):
        distribution.workers(start_timeout=0.5, cluster=cluster)


def test_another_list_of_workers_is_an_error_on_both():
    one, other = local_clusters(2)
    renamed = Cluster([one.workers[0].replace("127.0.0.1", "localhost"), one.workers[1]], other.index)
    for error in outcomes([one, renamed], timeout=20):
        assert isinstance(error, RuntimeError) and "has another list of workers" in str(error)


def test_a_taken_port_is_an_error_that_names_the_worker():
    cluster = local_clusters(2)[0]
    with (
        socket.create_server(split_address(cluster.workers[0])),
        pytest.raises(RuntimeError, match="worker 0 cannot listen at its own address, "),
    ):
        meet(cluster, {}, timeout=5)


def test_a_stranger_at_the_door_does_not_disturb():
    first, second = local_clusters(2)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(meet, first, {"name": "worker 0"}, 60)
        while not knocked(first.workers[0]):
            assert not waiting.done()
        late = threads.submit(meet, second, {"name": "worker 1"}, 60)
        assert waiting.result() == late.result() == [{"name": "worker 0"}, {"name": "worker 1"}]


def knocked(address):
    """Whether somebody listened to what no worker would say."""
    try:
        with socket.create_connection(split_address(address), timeout=1) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return True
    except OSError:
        return False
