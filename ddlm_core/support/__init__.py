"""What the chapters stand on, written by hand: it draws, stores, reads and checks, and knows no chapter."""
