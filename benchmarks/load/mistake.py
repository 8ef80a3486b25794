"""What the person at the command line can mend about a benchmark."""

from serving.errors import OperatorError


class BenchError(OperatorError):
    """An option, a file or a target that cannot be used; the message says what, where and what to do."""

    exit_code = 2


class GeneratorTooSlow(OperatorError):
    """The load generator, not the server, decided what was measured: the run proves nothing."""

    exit_code = 3
