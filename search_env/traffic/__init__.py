"""Traffic that other systems logged, read as feedback: whole searches, with the shown results and user actions."""
