"""What an evaluation leaves to be read: tables, figures, pages; from files alone."""
