"""`report.html`: a page on a run, or on several side by side."""
