"""The one exception that reading data raises."""


class DataError(ValueError):
    """The data cannot be trained on. One line says which file or array, what is wrong with it, where, how often."""
