"""`python -m keras_trainkit`: the same as `keras-trainkit`."""

from keras_trainkit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
