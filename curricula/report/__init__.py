"""The report: what runs and results hold, as one page that needs nothing else and is the same for the same inputs."""
