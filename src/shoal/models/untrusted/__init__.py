"""What strangers wrote, kept from doing harm."""
