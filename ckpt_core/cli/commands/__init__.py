"""One module for each command, imported when the command is called. Each shows; none decides."""
