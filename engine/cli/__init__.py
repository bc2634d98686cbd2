"""The command line: commands, options, jobs and sessions, sheets, and the records in pictures."""
