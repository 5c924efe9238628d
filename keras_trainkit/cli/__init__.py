"""The command `keras-trainkit`: one file per command. TensorFlow is imported only when a command needs it."""
