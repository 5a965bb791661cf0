"""Traffic that other systems logged, read as feedback: whole searches, with what was shown and what was done."""
