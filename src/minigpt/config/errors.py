"""The two errors that people see as one sentence: a wrong request, and work that failed."""


class RequestError(Exception):
    """The request was wrong (a bad key, a missing file): the command prints the sentence and exits with status 2."""


class WorkError(Exception):
    """The request was right but the work failed (disk full, damaged file): one sentence, exit status 1."""
