"""Options of the command line, their checks, schedules, errors and exit codes."""
