"""What runs share on disk: tables of rows that are made once, whichever process makes them. No torch."""
