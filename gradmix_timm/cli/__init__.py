"""The commands: flags in, exit status out; the only room that prints."""
