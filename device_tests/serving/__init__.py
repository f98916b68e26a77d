"""What holds of a server of openpi's protocol, found out from outside."""
