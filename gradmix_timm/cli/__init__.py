"""The commands: flags in, exit status out; the only subpackage that prints."""
