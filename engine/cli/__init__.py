"""The command line: commands, options, jobs and sessions, sheets."""
