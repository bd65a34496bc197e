"""HTTP: connections, requests and answers, and the limits of each."""
