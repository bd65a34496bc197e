"""HTTP: connections, requests, answers, and what each of them may take."""
