"""Questions over history: readers, pages, metric series, analyses and submissions."""
