"""Runs the set-up commands that README.md promises, word for word."""

import pathlib
import re
import subprocess
import sys

readme = pathlib.Path("README.md").read_text()
block = re.search(r"<!-- set-up -->\n```sh\n(.*?)```", readme, re.S)
if block is None:
    sys.exit("README.md has no set-up block")
commands = [line for line in block[1].splitlines() if line.strip()]
if len(commands) != 2:
    sys.exit(f"README.md promises two set-up commands and has {len(commands)}")

dev, test = commands
print("$", dev, flush=True)
shown = subprocess.run(dev, shell=True, stdout=subprocess.PIPE, timeout=3600)
expected = b"line 1\nline 2\nline 3\n"
if (shown.returncode, shown.stdout) != (0, expected):
    sys.exit(f"exit code {shown.returncode}, output {shown.stdout!r}")
print("$", test, flush=True)
sys.exit(subprocess.run(test, shell=True, timeout=3600).returncode)
