"""Request rates, error rates and latency quantiles for the analytics host."""
