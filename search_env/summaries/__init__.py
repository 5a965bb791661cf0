"""What ReLSum and ReSuMe share: products as a policy sees them, their values, and summaries within a budget."""
