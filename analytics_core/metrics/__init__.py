"""What a metric is: a declared figure over events, as SQL over history and as live windows over batches."""
