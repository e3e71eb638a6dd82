"""What stands behind the Lab page: benchmarks as processes of their own, their results, and what is drawn of both."""
