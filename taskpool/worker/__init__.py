"""The worker process's side: receive, run, report."""
