"""One module a verb, or a few that belong together; ``main(arguments)`` returns the exit code."""
