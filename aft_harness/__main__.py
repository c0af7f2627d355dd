"""`python -m aft_harness` is `aft`."""

from aft_harness.cli import main

main(prog_name="aft")
