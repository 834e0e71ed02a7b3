"""How a command ends; the way there of commands that do not read option classes yet."""

from wfimagevae.command_line import run_cli

__all__ = ["run_cli"]
