"""`python -m tests.chaos.frozen NAME:NTH`: the agent, which stops itself (SIGSTOP) at a named point and may be woken.

A process that hangs past its session and then goes on is the one that writes when it no longer may.
"""

import os
import signal
import sys

from schemas import failpoints


def main() -> None:
    reach = failpoints.armed(sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGSTOP))
    failpoints.reach = reach  # before any module that reaches points has taken it
    sys.argv[1:] = ["run", "agent"]
    from workers.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
