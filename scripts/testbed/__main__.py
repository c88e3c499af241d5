"""Start hosts in network namespaces of this machine, each with an address, sshd, home and data folder (root, Linux).

python -m scripts.testbed up 4              # prints the path of their hostfile
python -m scripts.testbed exec 2 CMD …      # on host 2
python -m scripts.testbed shell 2
python -m scripts.testbed down              # ends every process of every host, and removes beds of killed test runs
"""

import os
import sys

from scripts.testbed.bed import BY_HAND, PLACE, Bed, BedError, Host, sweep


def main(arguments: list[str]) -> int:
    """Run a command and return the exit code.

    Raises:
        BedError: The host is not up.
    """
    match arguments:
        case ["up", count] if count.isdecimal() and 1 <= int(count) <= 64:
            sweep()
            print(Bed(int(count), BY_HAND).up().hostfile)
        case ["down"]:
            sweep()
            Bed(0, BY_HAND).down()
        case ["shell" | "exec" as how, number, *command] if number.isdecimal() and (how == "shell") != bool(command):
            host = Host(BY_HAND, int(number))
            if not host.init:
                raise BedError(
                    f"host {number} is not up; in {PLACE}/{BY_HAND}: `python -m scripts.testbed up N` starts hosts"
                )
            inside = host.inside(command or ["bash"])
            os.execvp(inside[0], inside)
        case ["-h" | "--help"]:
            print(__doc__)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BedError as error:
        sys.exit(f"testbed: {error}")
