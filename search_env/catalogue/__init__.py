"""The catalogue: documents and their attributes, the words in them, what shoppers ask for, and a generated one."""
