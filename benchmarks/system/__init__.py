"""The machine and the processes on it: child processes, the server, its listeners, and the use of the cores."""
