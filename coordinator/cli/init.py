"""`coordinator init`: write a settings file and a hostfile to fill in, for a folder without a clone of the project."""

import json
import textwrap
from pathlib import Path

from coordinator.cli.settings import CONFIG_FILE, SETTINGS
from ingest.errors import UsageError, quoted

HOSTFILE = "hosts.json"
WIDTH = 100  # columns of a comment

_HEAD = f"""\
# Settings of `coordinator` for this folder. Remove the # before a line to change its value.
# A flag comes before an environment variable COORDINATOR_NAME, that before this file, and this file before the default.
# `coordinator config show` prints the values in force; `coordinator start --help` lists the flags.
# {HOSTFILE} in the same folder describes several machines. It is read only if `hostfile` names it.
"""
_HOSTS = """\
{
  "comment": [
    "One entry a host, in the order of the ring. Replace the names and addresses.",
    "ssh: a name that `ssh -o BatchMode=yes NAME true` accepts.",
    "ips: the address at which the host's neighbours in the ring reach it.",
    "envs: NAME=value, for every worker and rank.",
    "`coordinator doctor --hostfile` and the path of this file check the hosts."
  ],
  "backend": "ring",
  "envs": [],
  "hosts": [
    {"ssh": "m2-0.local", "ips": ["10.0.0.10"]},
    {"ssh": "m2-1.local", "ips": ["10.0.0.11"]}
  ]
}
"""


def settings_text() -> str:
    """Return the settings file: each setting's help as a comment, and its default as a line that is commented out."""
    parts = [_HEAD]
    for setting in SETTINGS:
        described = "\n".join(f"# {line}" for line in textwrap.wrap(setting.help, WIDTH, break_on_hyphens=False))
        parts.append(f"{described}\n# {setting.name} = {json.dumps(setting.default)}\n")
    return "\n".join(parts)


def write_templates(folder: Path) -> list[Path]:
    """Write the settings file and the hostfile into `folder`, both or neither, and return their paths.

    Raises:
        UsageError: one of them exists; nothing was written.
        OSError: the disk refused one of them; neither is left.
    """
    contents = {folder / CONFIG_FILE: settings_text().encode(), folder / HOSTFILE: _HOSTS.encode()}
    if there := [path for path in contents if path.exists()]:
        raise UsageError(
            f"{there[0]} exists already; nothing was written. Edit it, or write to another folder: `coordinator init --out DIR`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path, content in contents.items():
            path.write_bytes(content)
    except OSError:
        for path in contents:
            path.unlink(missing_ok=True)
        raise
    return list(contents)


def first_command(folder: Path) -> str:
    """Return the line that names the command to begin with, where the settings in `folder` hold."""
    if folder.resolve() == Path.cwd():
        return "Next: `coordinator start --extract`"
    return (
        f"Next: `cd {quoted(folder)}`, whose {CONFIG_FILE} is read only from there, then `coordinator start --extract`"
    )
