"""What a run teaches: one task a file, behind the one interface that the loop asks for."""
