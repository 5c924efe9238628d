"""A real PostgreSQL for the tests: a cluster of its own in a temporary directory, on a free port of this machine."""

import ctypes
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time


def programs():
    """The folder with `initdb` and `postgres`, or None."""
    on_path = shutil.which("initdb")
    folders = [os.path.dirname(os.path.realpath(on_path))] if on_path else []
    folders += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    return next((folder for folder in folders if os.path.exists(os.path.join(folder, "postgres"))), None)


def _end_with_the_tests():
    """A server must not stay where the tests are killed; Linux tells it (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


class Server:
    """A running server; `stop` and `start` are an outage."""

    def __init__(self, folder):
        self._programs = folder
        self._user = {}
        self.directory = tempfile.mkdtemp(prefix="postgres")
        if os.geteuid() == 0:  # it refuses to run as root
            names = {entry.pw_name for entry in pwd.getpwall()}
            who = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self._user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
            os.chown(self.directory, who.pw_uid, who.pw_gid)
        self._data = os.path.join(self.directory, "data")
        self._run("initdb", "-D", self._data, "-U", "kit", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = None
        self._databases = 0

    def _run(self, program, *arguments):
        command = [os.path.join(self._programs, program), *arguments]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, **self._user)
        assert done.returncode == 0, done.stderr

    def start(self):
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory, "fsync": "off",
                   "shared_buffers": "16MB", "max_connections": "40"}  # fmt: skip
        command = [os.path.join(self._programs, "postgres"), "-D", self._data, "-p", str(self.port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=log, stderr=log, preexec_fn=_end_with_the_tests, **self._user
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                assert self._process.poll() is None and time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.1)

    def stop(self):
        """As a cut: it ends at once, and all connections with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def execute(self, statement, database="postgres"):
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="kit", dbname=database, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def new_database(self):
        """The URL of an empty database."""
        self._databases += 1
        name = f"search_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://kit@127.0.0.1:{self.port}/{name}"

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
