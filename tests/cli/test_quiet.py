"""The silence around TensorFlow's import: complete in success, broken by errors."""

import os
import subprocess
import sys

import pytest

from keras_trainkit.cli.quiet import stderr_held_back

# Named like the command, so that the kit does not import everything before the silence begins.
IMPORT = """
import sys
sys.argv[0] = "keras-trainkit"
from keras_trainkit.cli import quiet
quiet.import_tensorflow()
assert "tensorflow" in sys.modules
"""


def test_nothing_shows_even_from_below_python(capfd):
    with stderr_held_back():
        os.write(2, b"from C\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_an_error_shows_what_was_held_back(capfd):
    with pytest.raises(ImportError), stderr_held_back():
        os.write(2, b"the reason\n")
        raise ImportError
    assert "the reason\n" in capfd.readouterr().err


@pytest.mark.tensorflow
@pytest.mark.parametrize("level", [None, "0"])
def test_tensorflow_is_silent_unless_the_user_asks(level):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stderr == "") == (level is None)
