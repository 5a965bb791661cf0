"""The pages: one web application that reads ledgers, and changes nothing."""
