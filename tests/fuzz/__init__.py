"""Any bytes: whatever is read must end in a result or in the error that is declared."""
