"""`python -m fastenh` is the command line, for where the script `fastenh` is not on the PATH."""

from fastenh.cli import app

app(prog_name="python -m fastenh")
