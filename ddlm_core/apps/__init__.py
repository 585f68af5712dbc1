"""What stands on the chapters, written by hand: the commands, the web page, the playground."""
