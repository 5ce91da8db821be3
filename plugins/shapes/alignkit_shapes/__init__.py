"""The shapes of rows that alignkit reads: known columns, templates, conversations, and answers made into pairs."""
