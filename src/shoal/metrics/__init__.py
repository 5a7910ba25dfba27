"""What a process counts, traces and logs of itself. Each node and each client has an object of its own."""
